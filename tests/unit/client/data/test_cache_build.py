"""Building a cache: right pixels, resumable after a kill, refused with one clear error."""

import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data.cache import build_cache, open_cache
from client.data.cache.store import CHUNK_ROWS, IMAGES, JOURNAL, MANIFEST, MASKS
from client.data.nih import open_archive
from client.data.pixels import read_image, read_mask
from common.errors import CacheError, DataError

Factory = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[4]


def test_the_cache_holds_what_the_readers_read(nih_archive: Factory, tmp_path: Path) -> None:
    archive = open_archive(nih_archive(patients=20, size=48, masks=True))  # 3 chunks
    done: list[int] = []
    cache = build_cache(archive, tmp_path / "new" / "cache", 32, workers=2, progress=done.append)
    assert sum(done) == 40
    assert cache.images.shape == cache.masks.shape == (40, 32, 32)
    assert cache.images.dtype == cache.masks.dtype == np.uint8
    assert not cache.images.flags.writeable
    assert cache.index.columns.tolist() == [
        name for name in archive.table.columns if name not in ("path", "mask")
    ] + ["row", "mask_row"]
    for name in cache.index.columns[:-2]:
        assert cache.index[name].dtype == archive.table[name].dtype
        assert cache.index[name].equals(archive.table[name])
    assert cache.index["row"].dtype == cache.index["mask_row"].dtype == np.int64
    for row in (0, 15, 16, 39):
        place, mask = int(cache.index["row"][row]), int(cache.index["mask_row"][row])
        assert np.array_equal(cache.images[place], read_image(Path(archive.table["path"][row]), 32))
        assert np.array_equal(cache.masks[mask], read_mask(Path(archive.table["mask"][row]), 32))
    cache.verify()
    assert len(cache.skipped) == 0
    assert not (cache.folder / JOURNAL).exists()
    assert cache.manifest["versions"]["pillow"]


def test_masks_of_some_images_only(nih_archive: Factory, tmp_path: Path) -> None:
    root = nih_archive(masks=True)
    for number in (1, 3):
        (root / "masks" / f"{number:08d}_000.png").unlink()
    cache = build_cache(open_archive(root), tmp_path / "cache", 32)
    assert cache.index["mask_row"].tolist() == [-1, 0, 1, 2, -1, 3, 4, 5, 6, 7, 8, 9]
    assert cache.masks.shape == (10, 32, 32)
    cache.verify()


def test_the_same_request_gives_the_same_cache(nih_archive: Factory, tmp_path: Path) -> None:
    root = nih_archive()
    first = build_cache(open_archive(root), tmp_path / "a", 32, workers=1)
    second = build_cache(open_archive(root), tmp_path / "b", 32, workers=4)
    assert first.identity == second.identity
    assert len(first.identity) == 64
    assert np.array_equal(first.images, second.images)
    assert build_cache(open_archive(root), tmp_path / "c", 16).identity != first.identity


def test_a_finished_cache_is_returned_at_once(nih_archive: Factory, tmp_path: Path) -> None:
    root = nih_archive()
    built = build_cache(open_archive(root), tmp_path / "cache", 32)
    manifest = built.folder / MANIFEST
    before = manifest.stat().st_mtime_ns
    done: list[int] = []
    again = build_cache(open_archive(root), tmp_path / "cache", 32, progress=done.append)
    assert (again.identity, sum(done)) == (built.identity, 12)
    for path in Path(root).rglob("*.png"):
        os.utime(path, (1, 1))  # another time, the same content
    again = build_cache(open_archive(root), tmp_path / "cache", 32)
    assert again.identity == built.identity
    assert manifest.stat().st_mtime_ns == before


def test_a_cache_of_something_else_is_refused(nih_archive: Factory, tmp_path: Path) -> None:
    root, folder = nih_archive(), tmp_path / "cache"
    build_cache(open_archive(root), folder, 32)
    with pytest.raises(CacheError, match=r"found a cache of 32 px; allowed: one of 64 px\. Choose"):
        build_cache(open_archive(root), folder, 64)
    other = open_archive(nih_archive(name="other", patients=7))
    with pytest.raises(CacheError, match="found a cache of another table"):
        build_cache(other, folder, 32)
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(root / "images_001/images/00000003_000.png")
    with pytest.raises(CacheError, match=r"1 source files changed since: 00000003_000\.png;"):
        build_cache(open_archive(root), folder, 32)
    with pytest.raises(CacheError, match="size: found 0; allowed: 1 or more"):
        build_cache(open_archive(root), folder, 0)


def test_a_cache_is_pickled_as_its_folder(nih_archive: Factory, tmp_path: Path) -> None:
    cache = build_cache(open_archive(nih_archive()), tmp_path / "cache", 32)
    content = pickle.dumps(cache)
    assert len(content) < 2000
    assert np.array_equal(pickle.loads(content).images, cache.images)


def spoil(root: Path) -> None:
    """Two bad images and one bad mask."""
    (root / "images_001/images/00000002_000.png").write_bytes(b"")
    (root / "images_002/images/00000004_001.png").write_text("no picture")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "masks/00000005_000.png")


def test_bad_images_are_refused_all_at_once(nih_archive: Factory, tmp_path: Path) -> None:
    root = nih_archive(masks=True)
    spoil(root)
    with pytest.raises(DataError) as caught:
        build_cache(open_archive(root), tmp_path / "cache", 32)
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "00000002_000.png: found an empty file" in text
    assert "00000004_001.png: found not an image but text" in text
    assert "masks/00000005_000.png: found a mask of 8 x 8 pixels; allowed: 32 x 32" in text
    with pytest.raises(CacheError, match="found a half-built cache; allowed: a finished one"):
        open_cache(tmp_path / "cache")


def test_skip_bad_leaves_them_out_and_counts_them(nih_archive: Factory, tmp_path: Path) -> None:
    root, folder = nih_archive(masks=True), tmp_path / "cache"
    spoil(root)
    (root / "images_001/images/00000001_000.png").unlink()
    (root / "masks/00000001_000.png").unlink()
    archive = open_archive(root, skip_bad=True)
    with pytest.raises(DataError):
        build_cache(archive, folder, 32)
    cache = build_cache(archive, folder, 32, skip_bad=True)  # goes on where it was refused
    assert len(cache.index) == 9
    assert cache.index.index.tolist() == list(range(9))
    assert cache.skipped.to_numpy().tolist() == [
        ["00000001_000.png", "no image file"],
        ["00000002_000.png", "image: an empty file"],
        ["00000004_001.png", "image: not an image but text"],
        ["00000005_000.png", "mask: a mask of 8 x 8 pixels"],
    ]
    assert cache.manifest["skipped"] == 4
    assert len(cache.manifest["problems"]) == 3
    row = cache.index.set_index("image").loc["00000005_000.png"]
    assert row["mask_row"] == -1  # its image stays
    for image, place in zip(cache.index["image"], cache.index["row"], strict=True):
        path = archive.table.set_index("image")["path"][image]
        assert np.array_equal(cache.images[place], read_image(Path(path), 32))
    cache.verify()
    with pytest.raises(DataError, match="found an empty file"):
        build_cache(archive, folder, 32)  # finished, but not what a strict caller asked for
    assert build_cache(archive, folder, 32, skip_bad=True).identity == cache.identity


def test_a_mended_image_is_decoded_again(nih_archive: Factory, tmp_path: Path) -> None:
    root, folder = nih_archive(masks=True), tmp_path / "cache"
    good = {path: path.read_bytes() for path in root.rglob("*.png")}
    spoil(root)
    with pytest.raises(DataError):
        build_cache(open_archive(root), folder, 32)
    for path, content in good.items():
        path.write_bytes(content)
    assert len(build_cache(open_archive(root), folder, 32).index) == 12


def test_nothing_but_bad_images(nih_archive: Factory, tmp_path: Path) -> None:
    root = nih_archive(patients=1, images=1)
    (root / "images_001/images/00000001_000.png").write_bytes(b"")
    with pytest.raises(DataError, match="an empty file"):
        build_cache(open_archive(root), tmp_path / "cache", 32, skip_bad=True)


def test_an_image_that_went_away(nih_archive: Factory, tmp_path: Path) -> None:
    archive = open_archive(nih_archive(patients=1))
    Path(archive.table["path"][1]).unlink()
    with pytest.raises(DataError, match="No such file"):
        build_cache(archive, tmp_path / "cache", 32)


BUILD = """
import sys
from pathlib import Path
from client.data.cache import build_cache
from client.data.nih import open_archive
build_cache(open_archive(Path(sys.argv[1])), Path(sys.argv[2]), 64, workers=1)
"""


def test_a_killed_build_goes_on_where_it_stopped(nih_archive: Factory, tmp_path: Path) -> None:
    """A real process, a real kill -9; finished chunks are not read a second time."""
    root, folder = nih_archive(patients=1, images=1, size=1024, lists=False), tmp_path / "cache"
    table = root / "Data_Entry_2017_v2020.csv"
    first = root / "images_001/images/00000001_000.png"
    names = [f"00000001_{number:03d}.png" for number in range(1, 320)]
    row = table.read_text().splitlines()[1]
    with table.open("a") as stream:
        stream.writelines(row.replace("00000001_000.png", name) + "\n" for name in names)
    for name in names:
        os.link(first, first.with_name(name))
    build = subprocess.Popen([sys.executable, "-c", BUILD, root, folder], cwd=ROOT)
    journal, deadline = folder / JOURNAL, time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 1):
        assert build.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    build.send_signal(signal.SIGKILL)
    assert build.wait() == -signal.SIGKILL
    with pytest.raises(CacheError, match=r"a half-built cache; .* Build it again: it resumes\."):
        open_cache(folder)

    finished = journal.read_bytes().count(b"\n") - 1
    with journal.open("ab") as stream:
        stream.write(b'{"number": 9, "key": "cut o')  # a line that the kill cut off
    # Other pixels of the same size and time: only what is decoded again will show them.
    facts, black = first.stat(), np.zeros((1024, 1024), np.uint8)
    Image.fromarray(black).save(tmp_path / "black.png")
    content = (tmp_path / "black.png").read_bytes()
    first.write_bytes(content + bytes(facts.st_size - len(content)))
    os.utime(first, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    cache = build_cache(open_archive(root), folder, 64)
    decoded_before = cache.images.any(axis=(1, 2))
    assert decoded_before.sum() == finished * CHUNK_ROWS
    assert 0 < finished * CHUNK_ROWS < 320
    cache.verify()


def test_a_finished_chunk_with_damaged_pixels_is_decoded_again(
    nih_archive: Factory, tmp_path: Path
) -> None:
    root, folder = nih_archive(masks=True), tmp_path / "cache"
    spoil(root)
    archive = open_archive(root)
    with pytest.raises(DataError):
        build_cache(archive, folder, 32)  # its chunk is in the journal
    os.truncate(folder / IMAGES, 100)
    with (folder / JOURNAL).open("ab") as stream:
        stream.write(bytes(40) + b"\n")  # what a power cut may leave
    build_cache(archive, folder, 32, skip_bad=True).verify()


def test_a_half_built_cache_of_something_else(nih_archive: Factory, tmp_path: Path) -> None:
    root, folder = nih_archive(masks=True), tmp_path / "cache"
    spoil(root)
    with pytest.raises(DataError):
        build_cache(open_archive(root), folder, 32)
    with pytest.raises(CacheError, match="found a half-built cache of something else; allowed: on"):
        build_cache(open_archive(root), folder, 64)


def test_two_builds_in_one_folder(nih_archive: Factory, tmp_path: Path) -> None:
    archive, folder = open_archive(nih_archive()), tmp_path / "cache"
    found: list[CacheError] = []

    def second(_: int) -> None:
        with pytest.raises(CacheError) as caught:
            build_cache(archive, folder, 32)
        found.append(caught.value)

    build_cache(archive, folder, 32, progress=second)
    assert "found another build at work; allowed: one build at a time" in str(found[0])


def test_a_stopped_build_keeps_its_finished_chunks(nih_archive: Factory, tmp_path: Path) -> None:
    archive, folder = open_archive(nih_archive(patients=40)), tmp_path / "cache"

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_cache(archive, folder, 32, workers=1, progress=stop)
    assert (folder / JOURNAL).read_bytes().count(b"\n") >= 1
    build_cache(archive, folder, 32).verify()


@contextmanager
def room_for(limit: int) -> Iterator[None]:
    """No file of this process may grow above so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_room_is_said_before_the_work_and_resumable(
    nih_archive: Factory, tmp_path: Path
) -> None:
    archive, folder = open_archive(nih_archive(patients=40)), tmp_path / "cache"
    with room_for(60_000), pytest.raises(CacheError) as caught:
        build_cache(archive, folder, 32)
    assert "found File too large; allowed: a writable folder with 0 MiB free" in str(caught.value)
    assert "then build again: it resumes." in str(caught.value)
    with pytest.raises(CacheError, match="a half-built cache"):
        open_cache(folder)
    build_cache(archive, folder, 32).verify()


FULL = """
mount -t tmpfs -o size=64k none "$3" || exit 77
exec "$0" -c "$1" "$2" "$3/cache"
"""


def test_a_disk_that_is_really_full(nih_archive: Factory, tmp_path: Path) -> None:
    """A disk of 64 KiB in a mount namespace of its own, which ends with the process."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", FULL]
    root = nih_archive(patients=40)
    try:
        done = subprocess.run(
            [*command, sys.executable, BUILD, root, disk], cwd=ROOT, capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("unshare (util-linux) is not installed")
    if done.returncode != 1:
        pytest.skip("this machine does not allow mount namespaces")
    assert "CacheError: " in done.stderr
    assert "found No space left on device; allowed: a writable folder with" in done.stderr


def test_a_full_disk_while_the_tables_are_written(nih_archive: Factory, tmp_path: Path) -> None:
    archive, folder = open_archive(nih_archive()), tmp_path / "cache"
    with room_for(9_000), pytest.raises(CacheError, match=r"index\.parquet: found File too large"):
        build_cache(archive, folder, 16)  # 12 x 16 x 16 bytes fit, the index does not
    build_cache(archive, folder, 16).verify()


def test_a_folder_that_cannot_be_written(nih_archive: Factory, tmp_path: Path) -> None:
    archive = open_archive(nih_archive())
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="found Not a directory; allowed: a writable folder"):
        build_cache(archive, tmp_path / "file" / "cache", 32)
    if os.geteuid() == 0:
        return  # root may write anywhere
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    with pytest.raises(CacheError, match="found Permission denied"):
        build_cache(archive, locked / "cache", 32)


def test_the_real_masks(shared_dir: Path, tmp_path: Path) -> None:
    cache = build_cache(open_archive(shared_dir / "lung_masks"), tmp_path / "cache", 64)
    assert cache.images.shape == cache.masks.shape == (200, 64, 64)
    assert set(np.unique(cache.masks)) == {0, 1}
    assert 0.1 < cache.masks.mean() < 0.4
    assert (cache.folder / MASKS).stat().st_size == 200 * 64 * 64
    cache.verify()
