"""Studies: many small trainings whose results are compared, each a cell that is done once."""
