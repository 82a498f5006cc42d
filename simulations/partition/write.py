"""Hospitals on disk: one site folder each, as a deployed site has it."""

import io
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg

from common.checkpoint import write_bytes
from common.errors import PartitionError, Problem
from simulations.partition.report import draw_summary, summary
from simulations.partition.result import Partition

ROWS = "rows.parquet"
OVERVIEW = ("partition.json", "partition.png")


def write_sites(
    partition: Partition,
    cache_folder: Path,
    out: Path,
    device: str = "auto",
    more: Mapping[str, Mapping[str, object]] | None = None,
) -> list[Path]:
    """Write out/<hospital>/ for every hospital and return those folders, in their order.

    A folder gets site.yaml (with the path of the shared cache relative to it), rows.parquet
    (image, split, labelled), and the empty folders state/ and reports/. Beside them come
    global_test.parquet (image, patient, site), partition.json and partition.png.

    more: further settings of a hospital, by its name.

    All or nothing: written beside `out` and moved in one step. Raises PartitionError when
    `out` is a file or a folder that is not empty, or cannot be written.
    """
    out = out.absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        found = "a folder with files in it" if out.is_dir() else "a file"
        step = "Choose another folder, or remove this one."
        raise PartitionError(Problem(str(out), "", found, "a new or an empty folder", step))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise PartitionError(_unwritable(out, error)) from None
    try:
        draft.chmod(0o755)  # mkdtemp makes folders that only their owner can enter
        for name, rows in partition.sites.items():
            settings: dict[str, object] = {
                "name": name,
                "cache": _relative(cache_folder, out / name),
                "rows": ROWS,
                "annotates": list(partition.annotates[name]),
                "device": device,
                **(more or {}).get(name, {}),
            }
            _write_site(draft / name, settings, rows)
        partition.test.to_parquet(draft / "global_test.parquet", index=False)
        write_overview(partition, overview(partition), draft)
        os.replace(draft, out)
    except OSError as error:
        raise PartitionError(_unwritable(out, error)) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # gone already when the move succeeded
    return [out / name for name in partition.sites]


def _relative(cache_folder: Path, site: Path) -> str:
    """A folder of hospitals can then move together with its cache."""
    # The parent is resolved too: ".." in the result is followed through real folders.
    real_site = site.parent.resolve() / site.name
    return Path(os.path.relpath(cache_folder.resolve(), real_site)).as_posix()


def _write_site(folder: Path, settings: dict[str, object], rows: pd.DataFrame) -> None:
    for part in ("state", "reports"):
        (folder / part).mkdir(parents=True)
    text = yaml.safe_dump(settings, sort_keys=False)
    (folder / "site.yaml").write_text(text, encoding="utf-8")
    rows[["image", "split", "labelled"]].to_parquet(folder / ROWS, index=False)


def overview(partition: Partition) -> dict[str, Any]:
    """What each hospital got and what the test holds, ready for JSON; undefined is None."""
    frame = summary(partition, partition.table)
    *hospitals, test = json.loads(frame.to_json(orient="index")).items()  # NaN and <NA>: null
    return {
        "seed": partition.seed,
        "spec": partition.spec.model_dump(mode="json"),
        "sites": {
            name: line | {"annotates": list(partition.annotates[name])} for name, line in hospitals
        },
        "test": test[1] | {"by_site": partition.test["site"].value_counts().to_dict()},
        "left_out": partition.left_out["reason"].value_counts().to_dict(),
    }


def write_overview(partition: Partition, value: Mapping[str, Any], folder: Path) -> None:
    """Write partition.json, which holds `value`, and the figure partition.png into a folder.

    Each atomically. Raises InputError when one cannot be written.
    """
    # As it is ordered: hospitals and findings have an order of their own.
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_bytes(folder / OVERVIEW[0], text.encode())
    title = f"What each hospital got: {partition.spec.scheme}, seed {partition.seed}"
    figure = draw_summary(summary(partition, partition.table), title)
    FigureCanvasAgg(figure)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=110, format="png")
    write_bytes(folder / OVERVIEW[1], picture.getvalue())


def _unwritable(out: Path, error: OSError) -> Problem:
    reason = error.strerror or type(error).__name__
    return Problem(str(out), "", reason, "a folder that can be written", "Check the disk and path.")
