"""How a run learns."""
