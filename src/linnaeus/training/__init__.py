"""Learning: losses, optimizers, tasks and the one loop."""
