"""The decoded cache: every image decoded once, mapped read-only by all sites that share it.

Never here: which hospital has which row.
"""

from client.data.cache.build import build_cache
from client.data.cache.store import Cache, open_cache

__all__ = ["Cache", "build_cache", "open_cache"]
