"""All that decides what leaves a site: the gate before the work, the guard after it.

A security officer reads this folder. Never here: training, or a way out that is not recorded.
"""
