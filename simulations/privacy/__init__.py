"""Privacy before and beside the training: what a plan would cost, and whether the step holds.

Never here: the accounting itself (client/privacy).
"""
