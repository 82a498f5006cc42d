"""What a site holds now: its rows and its cache, read when first needed, and again when changed.

Nothing is read before a question was admitted, so neither a greeting nor a refusal can tell, by
its time or by its code, what lies in these files. They are looked at anew for every question: a
patient whom the hospital takes out of them is not used by a process that was started before.
"""

import hashlib
from pathlib import Path

import torch

from client.data.batches import SiteData, load_site_data
from client.data.cache import open_cache
from client.data.cache.store import MANIFEST
from client.settings import SiteFolder


class Holdings:
    """The data of one site folder, and the size of its images."""

    def __init__(self, folder: SiteFolder, device: torch.device) -> None:
        """Nothing is read here."""
        self._folder, self._device = folder, device
        self._data: SiteData | None = None
        self._size, self._seen, self._doubted = 0, "", False

    @property
    def data(self) -> SiteData:
        """The site's rows. Raises DataError or CacheError when they are not in order."""
        if self._doubted:
            self.refresh()
        if self._data is None:
            seen = self._fingerprint()
            cache = open_cache(self._folder.cache)
            self._data = load_site_data(self._folder, cache, self._device)
            self._size, self._seen = cache.size, seen
        return self._data

    @data.setter
    def data(self, data: SiteData) -> None:
        """Put other rows of the same cache in their place, as studies of one question do."""
        self._data = data

    @property
    def image_size(self) -> int:
        """Side of the cached images in pixels. Raises what `data` raises."""
        _ = self.data
        return self._size

    def look_again(self) -> None:
        """Have the files looked at when data is needed next. Nothing is read here."""
        self._doubted = True

    def refresh(self) -> None:
        """Let go of what was read when the files are others now, by their content."""
        self._doubted = False
        if self._data is not None and self._fingerprint() != self._seen:
            self._data = None

    def _fingerprint(self) -> str:
        """SHA-256 over the table of rows and the cache's manifest; of a missing file, nothing.

        The manifest holds the hashes of the cache's tables and pixels.
        """
        digest = hashlib.sha256()
        for file in (self._folder.path / self._folder.settings.rows, self._folder.cache / MANIFEST):
            digest.update(hashlib.sha256(_content(file)).digest())
        return digest.hexdigest()


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""  # reading it in earnest says what is wrong with it
