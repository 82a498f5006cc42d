"""The decoded cache: every image decoded once, mapped read-only by all sites that share it."""

from client.cache.build import build_cache
from client.cache.store import Cache, open_cache

__all__ = ["Cache", "build_cache", "open_cache"]
