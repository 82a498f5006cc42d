"""Flower's processes on this machine: SuperLink, Ray, the run, and no leftovers.

Never here: data, models, or what a run is about.
"""
