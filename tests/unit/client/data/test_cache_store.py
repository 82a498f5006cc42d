"""Opening a cache: one clear error for every damage."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from client.data.cache import Cache, build_cache, open_cache
from client.data.cache.store import IMAGES, INDEX, MANIFEST, MASKS, SKIPPED, SOURCES
from client.data.nih import open_archive
from common.errors import CacheError

Factory = Callable[..., Path]


@pytest.fixture
def cache(nih_archive: Factory, tmp_path: Path) -> Cache:
    return build_cache(open_archive(nih_archive(masks=True)), tmp_path / "cache", 32)


def error(folder: Path, verify: bool = True) -> str:
    with pytest.raises(CacheError) as caught:
        open_cache(folder, verify)
    assert len(caught.value.problems) == 1
    return str(caught.value)


def flip(path: Path, place: int = 100) -> None:
    """Change one byte."""
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)


def test_a_sound_cache_opens(cache: Cache) -> None:
    for verify in (True, False):
        again = open_cache(cache.folder, verify)
        assert again.index.equals(cache.index)
        assert again.identity == cache.identity
        assert again.skipped.columns.tolist() == ["image", "reason"]


def test_a_folder_that_is_no_cache(tmp_path: Path) -> None:
    assert "found no manifest.json; allowed: a finished cache. Build the" in error(tmp_path)


@pytest.mark.parametrize("name", [IMAGES, MASKS, INDEX, SOURCES, SKIPPED])
def test_a_missing_file(cache: Cache, name: str) -> None:
    (cache.folder / name).unlink()
    assert f"{name}: found No such file or directory; allowed: a readable" in error(cache.folder)


@pytest.mark.parametrize("name", [IMAGES, MASKS, INDEX, SOURCES, SKIPPED])
def test_a_file_of_another_size(cache: Cache, name: str) -> None:
    path = cache.folder / name
    size = path.stat().st_size
    with path.open("ab") as stream:
        stream.write(b"x")
    assert f"{name}: found {size + 1} bytes; allowed: {size} bytes. Delete" in error(cache.folder)


@pytest.mark.parametrize("name", [INDEX, SOURCES, SKIPPED])
def test_a_changed_table(cache: Cache, name: str) -> None:
    flip(cache.folder / name)
    assert f"{name}: found changed content; allowed: the content that" in error(cache.folder)


def test_a_table_that_is_no_parquet(cache: Cache) -> None:
    flip(cache.folder / INDEX, -1)
    assert "allowed: a Parquet table. Delete the folder" in error(cache.folder, verify=False)


def test_another_schema(cache: Cache) -> None:
    path = cache.folder / MANIFEST
    path.write_text(json.dumps(cache.manifest | {"schema": 99}))
    assert "manifest.json: found cache schema 99; allowed: schema 2. Delete" in error(cache.folder)
    path.write_text("[]")
    assert "found cache schema None" in error(cache.folder)


def test_a_damaged_manifest(cache: Cache) -> None:
    path = cache.folder / MANIFEST
    path.write_text('{"schema": 1, "siz')
    assert "manifest.json: found a damaged file (Unterminated" in error(cache.folder)
    path.write_text('{"schema": 2, "size": 32}')
    assert "found no key chunk_rows, chunks, files, identity" in error(cache.folder)


def test_changed_pixels_are_found_by_a_full_verify(cache: Cache) -> None:
    flip(cache.folder / IMAGES)
    again = open_cache(cache.folder)  # cheap checks do not read the pixels
    with pytest.raises(
        CacheError, match=r"rows 0 to 11: found changed pixels; allowed: the pixels"
    ):
        again.verify()
    flip(cache.folder / IMAGES)
    again.verify()
    flip(cache.folder / MASKS)
    with pytest.raises(CacheError, match="changed pixels"):
        again.verify()
