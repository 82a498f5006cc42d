"""Synthetic chest radiographs in the NIH ChestX-ray14 layout: the data set that comes along.

Never here: anything learnt from patients' images.
"""

from simulations.phantom.archive import make_phantom
from simulations.phantom.sheet import contact_sheet
from simulations.phantom.table import phantom_table

__all__ = ["contact_sheet", "make_phantom", "phantom_table"]
