"""The report of a run: its facts, what they mean in words, and the page made of both."""
