"""`consilium-sim ablate`: what each part of the method is worth.

Never here: a training; the cells of simulations/study do it.
"""
