"""A whole run: archive to hospitals, federation, baselines, results on the same tests.

Never here: Flower's processes, or the comparison of many trainings (study).
"""
