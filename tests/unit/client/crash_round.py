"""Kill -9 a site at a chosen line of a private round: `python -m ... SITE PLAN OUT STEP`.

Works in a process of its own: it forks, and the child kills itself the first time that it comes
to a line. Prints a JSON list of deaths: the line, how far the round had come, and what the
ledger says afterwards.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

import client.privacy.training  # here, so that no child spends its lines on importing it
from client.answer import answer
from client.ledger import Ledger, verify
from client.privacy.accounting import epsilon
from client.site import Site
from common.checkpoint import array_sha256
from common.plan import Plan, load_plan
from common.update import Broadcast
from common.wire import Parcel, pack_broadcast
from tests.unit.client.private_world import start

ROOT = Path(__file__).resolve().parents[3]
WATCHED = tuple(
    str(ROOT / "client" / part)
    for part in (
        "answer.py",
        "site.py",
        "ward.py",
        "border",
        "learning/states.py",
        "ledger",
        "privacy",
    )
)
TRAINING = str(client.privacy.training.__file__)


def question(plan: Plan, number: int) -> Parcel:
    """What the server sends for round `number`."""
    shared = start(plan)
    broadcast = Broadcast(plan.to_json(), number, array_sha256(shared), shared * 0, base=shared)
    return pack_broadcast(broadcast, "bf16")


class Watch:
    """Counts the lines of our code that a process comes to, and may end it at one of them."""

    def __init__(self, last: str | None, marks: Path) -> None:
        self.seen: list[str] = []
        self._known: set[tuple[str, int]] = set()
        self._last, self._marks = last, marks

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(WATCHED):
            return None
        if event == "line" and (file, frame.f_lineno) not in self._known:
            self._known.add((file, frame.f_lineno))
            self.seen.append(f"{Path(file).relative_to(ROOT)}:{frame.f_lineno}")
            if file == TRAINING and frame.f_code.co_name == "_steps":
                (self._marks / "stepped").touch()  # the round's first step has begun
            if self.seen[-1] == self._last:
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def in_child(site: Path, plan: Plan, number: int, last: str | None, marks: Path) -> int:
    """Train round `number` in a fork; return how it ended, or how many lines it came to."""
    child = os.fork()
    if child == 0:
        watch = Watch(last, marks)
        sys.settrace(watch)
        parcel = answer("train", question(plan, number), site)
        sys.settrace(None)
        (marks / "lines.json").write_text(json.dumps(watch.seen))
        os._exit(0 if "error" not in parcel.config else 1)
    return os.waitpid(child, 0)[1]


def main() -> None:
    """Every STEP-th line, one after the other, each on a fresh copy of the site."""
    site, plan = Path(sys.argv[1]), load_plan(Path(sys.argv[2]))
    out, step = Path(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    before = Ledger(site / "ledger.sqlite").epsilon(1e-5)
    [charge] = Ledger(site / "ledger.sqlite").charges()
    for times in range(2, 5):  # what the children inherit: the accountant remembers its answers
        epsilon([charge] * times, 1e-5)
    warm = copy(site, out / "warm")
    assert in_child(warm, plan, 2, None, warm) == 0
    lines = json.loads((warm / "lines.json").read_text())
    reports: list[dict[str, Any]] = []
    for last in lines[::step]:
        place = copy(site, out / "place")
        died = in_child(place, plan, 2, last, place)
        ledger = Ledger(place / "ledger.sqlite")
        report: dict[str, Any] = {
            "line": last,
            "killed": os.WIFSIGNALED(died),
            "stepped": (place / "stepped").exists(),
            "before": before,
            "after": ledger.epsilon(1e-5),
            "entries": verify(ledger.path).entries,
            "kinds": [entry.kind for entry in ledger.entries()],
        }
        if len(reports) % 5 == 0:  # the site starts again, and goes on from its true spend
            update = Site.open(place).train(plan, 2, start(plan))
            report["again"] = None if update.spent is None else update.spent.epsilon
            assert np.isfinite(update.delta).all()
        reports.append(report)
        shutil.rmtree(place)
    print(json.dumps(reports))


def copy(site: Path, to: Path) -> Path:
    """A copy of the site folder that is its own (its cache stays where it is)."""
    shutil.copytree(site, to)
    return to


if __name__ == "__main__":
    main()
