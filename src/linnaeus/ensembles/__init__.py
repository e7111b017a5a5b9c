"""Several bundles as one: members, their weights, and the bundle made of them."""
