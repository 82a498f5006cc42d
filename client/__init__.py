"""A hospital site: reads its data, trains, and decides what may leave.

Loose here are the doors (app, answer, cli), the site itself, and what the hospital says
(settings, policy). Never here: another of our packages than `common`, or a way around `border`.
"""
