"""Differentially private training at a site: noise, accounting, and the private step.

Imports nothing by itself, so that a site without private plans loads none of it.
Never here: a decision that reads the data, or a number of the data that is sent without noise.
"""
