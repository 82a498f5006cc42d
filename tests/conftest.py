"""Fixtures that several tests share."""

import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
LABELS = ("No Finding", "Effusion|Infiltration", "Pneumonia", "", "Atelectasis|Edema|Mass")
LAYOUTS: dict[str, Callable[[int], str]] = {
    "official": lambda number: f"images_{number % 2 + 1:03d}/images",
    "short": lambda number: f"images_{number % 2 + 1:03d}",
    "images": lambda number: "images",
    "flat": lambda number: ".",
}

ArchiveFactory = Callable[..., Path]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of shared material beside the checkout (real images and tables)."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared (real images and tables) is not beside this checkout")
    return SHARED.resolve()


@pytest.fixture
def hearing() -> Iterator[None]:
    """Signals reach this process and its children, as they reach programs in a terminal.

    A shell starts its background jobs deaf to SIGINT, and `nohup` to SIGHUP.
    """
    deaf = [n for n in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_IGN]
    for number in deaf:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in deaf:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def nih_archive(tmp_path: Path) -> ArchiveFactory:
    """A factory of tiny archives in the NIH layout, made of real PNG files.

    `nih_archive(name="archive", patients=6, images=2, size=32, layout="official", masks=False,
    lists=True)` makes and returns the folder `tmp_path / name`: `Data_Entry_2017_v2020.csv`
    with the release's header, `patients * images` grey PNGs of size x size pixels named
    `00000001_000.png`, ..., and both split lists (the last third of the patients is "test").
    Labels go round LABELS (one of five rows is unlabelled), sex and view alternate, and the
    pixels are seeded by image. layout: "official", "short", "images" or "flat"; masks: a
    0/255 mask of every image in `masks/`.
    """

    def make(
        name: str = "archive",
        patients: int = 6,
        images: int = 2,
        size: int = 32,
        layout: str = "official",
        masks: bool = False,
        lists: bool = True,
    ) -> Path:
        root = tmp_path / name
        root.mkdir()
        rows, splits = [HEADER], {"train_val_list.txt": "", "test_list.txt": ""}
        for number, (patient, image) in enumerate(
            itertools.product(range(1, patients + 1), range(images))
        ):
            file = f"{patient:08d}_{image:03d}.png"
            folder = root / LAYOUTS[layout](number)
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (size, size), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / file)
            if masks:
                (root / "masks").mkdir(exist_ok=True)
                mask = np.zeros((size, size), dtype=np.uint8)
                mask[size // 4 : -size // 4, size // 8 : size // 2] = 255
                Image.fromarray(mask).save(root / "masks" / file)
            label, sex = LABELS[number % len(LABELS)], "MF"[patient % 2]
            view = ("PA", "AP")[number % 2]
            age = 40 + patient
            rows.append(f"{file},{label},{image},{patient},{age},{sex},{view},{size},{size},.1,.1")
            split = "test_list.txt" if patient > patients * 2 // 3 else "train_val_list.txt"
            splits[split] += f"{file}\n"
        (root / "Data_Entry_2017_v2020.csv").write_text("\n".join(rows) + "\n")
        for file, text in splits.items() if lists else ():
            (root / file).write_text(text)
        return root

    return make
