"""Privacy before and beside the training: what a plan would cost, and whether the step holds."""
