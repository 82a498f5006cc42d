"""Local learning: a round of training, the teacher, last fits, evaluation, what is kept between.

Never here: differential privacy, a decision on what may leave, or a file of the archive.
"""
