"""What people read after a run: the page, its tables, words and figures, the privacy report.

Never here: training, aggregation, or a number that is not in the run folder.
"""
