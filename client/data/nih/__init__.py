"""Opens an NIH ChestX-ray14 archive: which files there are, and which belong to which row.

Never here: the cache, or a fault that is repaired without a word.
"""

from client.data.nih.archive import Archive, open_archive

__all__ = ["Archive", "open_archive"]
