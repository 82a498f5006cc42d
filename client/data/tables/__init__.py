"""Reads what is written of images: label table, lists, boxes; and whose an image is by its names.

Never here: a look at any other file.
"""

from client.data.tables.lists import read_boxes, read_list
from client.data.tables.table import find_table, read_table

__all__ = ["find_table", "read_boxes", "read_list", "read_table"]
