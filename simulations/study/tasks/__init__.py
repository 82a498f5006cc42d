"""`consilium-sim tasks`: one network for all tasks, or one for each.

Never here: a training; the cells of simulations/study do it.
"""
