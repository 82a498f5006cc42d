"""Synthetic chest radiographs in the NIH ChestX-ray14 layout: the data set that comes along."""

from simulations.phantom.archive import make_phantom
from simulations.phantom.sheet import contact_sheet

__all__ = ["contact_sheet", "make_phantom"]
