"""How good a classifier is: scores with intervals, from probabilities and labels alone."""
