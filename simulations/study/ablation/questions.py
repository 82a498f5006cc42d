"""The questions that an ablation answers, and which of its rows must be compared for them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from common.bootstrap import Replicates
from simulations.study.ablation.grid import Setting
from simulations.study.ablation.spec import Arrangement
from simulations.study.statistics import Floats, View


@dataclass(frozen=True)
class Question:
    """A question for people, and the pairs of rows whose difference answers it."""

    key: str
    text: str
    pairs: tuple[tuple[str, str], ...]


QUESTIONS = (
    Question(
        "unlabelled",
        "Do images that nobody has annotated help?",
        (
            ("classifier+unlabelled", "classifier"),
            ("segmenter+unlabelled", "segmenter"),
            ("multitask+unlabelled", "multitask"),
        ),
    ),
    Question(
        "multitask",
        "Is one network for findings and lungs better than one for each?",
        (
            ("multitask", "classifier"),
            ("multitask", "segmenter"),
            ("multitask+unlabelled", "classifier+unlabelled"),
            ("multitask+unlabelled", "segmenter+unlabelled"),
        ),
    ),
    Question(
        "bridge",
        "Does the saliency bridge between the tasks help?",
        (("bridge", "multitask+unlabelled"),),
    ),
    Question("federation", "Is a federation better than each hospital alone?", ()),
    Question("price", "Is a federation as good as all images in one place?", ()),
)
# These compare one row with itself, under another arrangement.
ARRANGEMENTS: dict[str, tuple[Arrangement, Arrangement]] = {
    "federation": ("federation", "local"),
    "price": ("federation", "pooled"),
}


@dataclass(frozen=True, eq=False)
class Scored:
    """One row in one setting on one view: its scores by seed.

    counted: the findings in its mean AUROC, the same on every view of a setting, so that
    what is lost away from home is not a matter of which findings are tested there.
    """

    row: str
    setting: Setting
    view: View
    counted: tuple[str, ...]
    findings: Mapping[int, Replicates]
    dice: Mapping[int, Floats]
    iou: Mapping[int, Floats]
    patients: npt.NDArray[Any]  # (M,) whose images the overlaps are


@dataclass(frozen=True)
class Asked:
    """One comparison: first minus second."""

    question: str
    first: Scored
    second: Scored


def asked(scored: Sequence[Scored]) -> Iterator[Asked]:
    """Every comparison that the scored rows allow, question by question."""
    for question in QUESTIONS:
        for first, second in question.pairs:
            for one in (each for each in scored if each.row == first):
                for other in (each for each in scored if each.row == second):
                    if _comparable(one, other):
                        yield Asked(question.key, one, other)
        if question.key not in ARRANGEMENTS:
            continue
        mine, theirs = ARRANGEMENTS[question.key]
        for one in (each for each in scored if each.setting.arrangement == mine):
            wanted = replace(one.setting, arrangement=theirs)
            for other in scored:
                if (other.row, other.setting, other.view.name) == (one.row, wanted, one.view.name):
                    yield Asked(question.key, one, other)


def _comparable(one: Scored, other: Scored) -> bool:
    """Whether two rows had the same budgets (of what both learn), arrangement, domain, view."""
    first, second = one.setting, other.setting
    budgets = zip((first.findings, first.masks), (second.findings, second.masks), strict=True)
    same = all(None in pair or pair[0] == pair[1] for pair in budgets)
    where = (first.arrangement, first.domain) == (second.arrangement, second.domain)
    return same and where and one.view.name == other.view.name
