"""Hospitals simulated on one machine; loose here are the doors (app, cli).

May import everything. Never here: what a deployed hospital or coordinator needs.
"""
