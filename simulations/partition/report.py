"""What each hospital got: as a data frame, a table in the terminal, and a figure."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.table import Table

from common.findings import FINDINGS
from simulations.partition.patients import describe_patients
from simulations.partition.result import Partition

TEST = "global test"
COUNTS = ("patients", "images", "train", "val", "labelled", "PA", "AP")
SHARES = ("AP %", "median age", "women %")
WIDE = 8  # more hospitals than this do not fit side by side
DRAWN = 40  # more hospitals than this are not drawn
BLUE, ORANGE, GREY = "#3b6fa0", "#dd8a3c", "#b8b8b8"


def summary(partition: Partition, table: pd.DataFrame) -> pd.DataFrame:
    """One row a hospital, then the row "global test"; `table` holds the images' columns.

    Columns: patients, images, train, val (images), labelled (images whose labels may be used),
    PA, AP (images), all int64; AP % (of the images with a known view), median age (years, at
    the first image), women % (of the patients with a known sex), float64; then per finding the
    positive images (Int64, <NA> when the hospital does not annotate it).
    """
    by_image = table.set_index("image")[["view", "labelled", *FINDINGS]]
    # A patient is in one place only, so that what is known of him holds for that place.
    people = describe_patients(table)[["age"]].join(table.groupby("patient")["sex"].first())
    lines = {
        name: _line(by_image, people, rows, partition.annotates[name])
        for name, rows in partition.sites.items()
    }
    known = by_image.loc[partition.test["image"], "labelled"].to_numpy()
    test = partition.test.assign(split="test", labelled=known)
    lines[TEST] = _line(by_image, people, test, FINDINGS)
    frame = pd.DataFrame.from_dict(lines, orient="index")
    types = dict.fromkeys(COUNTS, "int64") | dict.fromkeys(SHARES, "float64")
    return frame.astype(types | dict.fromkeys(FINDINGS, "Int64"))


def _line(
    by_image: pd.DataFrame, people: pd.DataFrame, rows: pd.DataFrame, annotates: tuple[str, ...]
) -> dict[str, object]:
    """One hospital's row of the summary. rows: image, patient, split, labelled."""
    images = by_image.loc[rows["image"]]
    patients = people.loc[rows["patient"].unique()]
    pa, ap = int((images["view"] == "PA").sum()), int((images["view"] == "AP").sum())
    women, known = (patients["sex"] == "F").sum(), patients["sex"].isin(["F", "M"]).sum()
    usable = images[rows["labelled"].to_numpy()]
    return {
        "patients": len(patients),
        "images": len(rows),
        "train": int((rows["split"] == "train").sum()),
        "val": int((rows["split"] == "val").sum()),
        "labelled": len(usable),
        "PA": pa,
        "AP": ap,
        "AP %": _percent(ap, pa + ap),
        "median age": float(patients["age"].median()),
        "women %": _percent(int(women), int(known)),
        **{
            finding: int((usable[finding] == 1).sum()) if finding in annotates else pd.NA
            for finding in FINDINGS
        },
    }


def _percent(part: int, whole: int) -> float:
    return 100.0 * part / whole if whole else float("nan")


def print_summary(console: Console, partition: Partition) -> None:
    """Print what each hospital got; with many hospitals, without the findings."""
    frame = summary(partition, partition.table)
    hospitals = len(frame) - 1
    table = Table(title=f"{hospitals} hospitals, scheme {partition.spec.scheme}")
    shown = [column for column in frame.columns if column not in ("PA", "AP")]
    if hospitals > WIDE:
        shown = [column for column in shown if column not in FINDINGS]
        table.add_column("hospital")
        for column in shown:
            table.add_column(column, justify="right")
        for name, line in frame.iterrows():
            table.add_row(str(name), *(_cell(line, column) for column in shown))
    else:
        table.add_column("")
        for name in frame.index:
            table.add_column(str(name), justify="right")
        for column in shown:
            if column == FINDINGS[0]:
                table.add_section()
            table.add_row(column, *(_cell(line, column) for _, line in frame.iterrows()))
        table.caption = "positive images (% of the labelled); - = not annotated"
    console.print(table)
    for reason, images in partition.left_out["reason"].value_counts().items():
        console.print(f"Left out: {images:,} images ({reason}).")


def _cell(line: "pd.Series[Any]", column: str) -> str:
    value = line[column]
    if pd.isna(value):
        return "-"
    if column in SHARES:
        return f"{value:.0f}"
    if column in FINDINGS and line["labelled"]:
        return f"{value:,} ({100 * value / line['labelled']:.1f})"
    return f"{value:,}"


def draw_summary(frame: pd.DataFrame, title: str) -> Figure:
    """Draw a `summary` frame: prevalence per hospital and finding, and images by view.

    Numbers are prevalences in %; the colour compares them with all hospitals together, so
    that a column shows which hospital sees more or fewer of a finding.
    """
    left = len(frame) - 1 - DRAWN
    if left > 0:
        frame = pd.concat([frame.iloc[:DRAWN], frame.iloc[-1:]])
        title += f" ({left} more hospitals not drawn)"
    figure = Figure(figsize=(15, 2.6 + 0.45 * len(frame)), layout="constrained")
    heat, bars = figure.subplots(1, 2, sharey=True, width_ratios=[3.2, 1])
    _draw_prevalence(figure, heat, frame)
    _draw_images(figure, bars, frame)
    figure.suptitle(title, fontsize=13)
    return figure


def _draw_prevalence(figure: Figure, axes: Any, frame: pd.DataFrame) -> None:
    positives = frame[list(FINDINGS)].astype("Float64").to_numpy(dtype=np.float64, na_value=np.nan)
    labelled = frame["labelled"].to_numpy(dtype=np.float64)[:, None]
    percent = np.divide(
        100 * positives, labelled, out=np.full_like(positives, np.nan), where=labelled > 0
    )
    hospitals = slice(len(frame) - 1)  # the last row is the test
    annotated = (labelled * ~np.isnan(positives))[hospitals].sum(axis=0)
    mean = 100 * np.nansum(positives[hospitals], axis=0) / np.maximum(annotated, 1)
    # No case at all, a ratio of 0, is drawn as the low end of the scale.
    ratio = np.log2(np.clip(percent / np.maximum(mean, 1e-9), 0.25, 4.0))
    axes.set_facecolor("#cfcfcf")  # shows where a finding is not annotated
    norm = TwoSlopeNorm(vmin=-2, vcenter=0, vmax=2)
    image = axes.imshow(ratio, cmap="RdBu_r", norm=norm, aspect="auto")
    for (row, column), value in np.ndenumerate(percent):
        dark = abs(np.nan_to_num(ratio[row, column])) > 1.2
        colour = "white" if dark else "#222222"
        axes.text(column, row, _number(value), ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(len(FINDINGS)), [name.replace("_", " ") for name in FINDINGS])
    axes.tick_params(axis="x", labelrotation=35, length=0)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(frame)), [str(name) for name in frame.index])
    axes.axhline(len(frame) - 1.5, color="#222222", linewidth=1)
    axes.set_title("Positive images, % of the labelled (- not annotated)", fontsize=11)
    bar = figure.colorbar(image, ax=axes, location="left", shrink=0.9, pad=0.02)
    bar.set_ticks([-2, -1, 0, 1, 2], labels=["¼ x", "½ x", "mean", "2 x", "4 x"])


def _number(percent: float) -> str:
    """Short, and 0 only where there is no case at all."""
    if np.isnan(percent):
        return "-"
    if percent == 0:
        return "0"
    return f"{percent:.1f}" if percent >= 0.095 else f"{percent:.2f}"


def _draw_images(figure: Figure, axes: Any, frame: pd.DataFrame) -> None:
    other = frame["images"] - frame["PA"] - frame["AP"]
    parts = [("PA", frame["PA"], BLUE), ("AP", frame["AP"], ORANGE), ("unknown", other, GREY)]
    start = np.zeros(len(frame))
    for name, values, colour in parts:
        if values.sum() == 0:
            continue
        axes.barh(range(len(frame)), values, left=start, color=colour, label=name, height=0.62)
        start += values.to_numpy(dtype=np.float64)
    for row, (images, patients) in enumerate(zip(frame["images"], frame["patients"], strict=True)):
        axes.text(images, row, f" {images:,}\n {patients:,} pat.", va="center", fontsize=8)
    axes.set_xlim(0, 1.3 * max(float(frame["images"].max()), 1.0))
    axes.axhline(len(frame) - 1.5, color="#222222", linewidth=1)
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Images by view", fontsize=11)
    figure.legend(loc="outside lower right", ncols=3, frameon=False)
