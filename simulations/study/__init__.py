"""Studies: many small trainings whose results are compared, each a cell that is done once.

Never here: how one federation or one baseline is trained (simulations/experiment).
"""
