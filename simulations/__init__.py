"""Hospitals simulated on one machine. May import everything; nothing imports it."""
