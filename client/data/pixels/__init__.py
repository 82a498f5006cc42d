"""Reads one file, PNG, JPEG or DICOM: a radiograph or a lung mask as a square of pixels.

Never here: which files there are, and whose.
"""

from client.data.pixels.images import read_image
from client.data.pixels.masks import read_mask

__all__ = ["read_image", "read_mask"]
