"""The coordinator: the round loop, what may enter, the strategy, the run folder.

Loose here are the doors (app, cli) and the loop's parts. Never here: patients, or our packages
other than `common`.
"""
