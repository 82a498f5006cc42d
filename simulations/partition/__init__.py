"""One archive becomes several hospitals: patients are dealt out, never rows.

The common partitioners deal out rows, so that one patient lands in two "hospitals". Here a
patient is in one hospital, or in the global test, or left out, and never in two of them.
Never here: pixels.
"""

from simulations.partition.assign import partition
from simulations.partition.groups import read_groups
from simulations.partition.report import draw_summary, print_summary, summary
from simulations.partition.result import Partition
from simulations.partition.write import OVERVIEW, overview, write_overview, write_sites

__all__ = [
    "OVERVIEW",
    "Partition",
    "draw_summary",
    "overview",
    "partition",
    "print_summary",
    "read_groups",
    "summary",
    "write_overview",
    "write_sites",
]
