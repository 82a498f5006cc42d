"""Reads an NIH ChestX-ray14 archive: table, lists, boxes, images and masks."""

from client.nih.archive import Archive, open_archive
from client.nih.images import read_image, read_mask
from client.nih.lists import read_boxes, read_list
from client.nih.table import find_table, read_table

__all__ = [
    "Archive",
    "find_table",
    "open_archive",
    "read_boxes",
    "read_image",
    "read_list",
    "read_mask",
    "read_table",
]
