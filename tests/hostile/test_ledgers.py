"""Careless and malicious hosts: ledgers, anchors, claims and states set back, copied, cut, swapped.

Whatever lies on the disk: as often as the patients were trained on, so often it is charged in the
ledger that the site goes on with; or nothing leaves, and one message says what to do. What the
site cannot see, as ledger, anchor and claims were all set back, the coordinator's mirror shows.
"""

import itertools
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from client import answer as answering
from client.border.deadline import Due, in_time
from client.ledger import Head, Ledger, LedgerError, verify
from common.checkpoint import write_arrays
from common.plan import Plan
from common.wire import Parcel, unpack_update
from simulations.privacy.membership.coordinator import ask as put
from tests.conftest import ArchiveFactory
from tests.unit.client.private_world import private_plan, private_site, start
from tests.unit.client.sites import small_cache

WAYS_OUT = ("Restore", "restore it", "Delete it", "delete it", "put the right one back", "Set `")
PARTS = ("ledger", "anchor", "claim", "state")
LEFT = ("new", "old", "gone", "cut")


class Host:
    """A hospital's disk: a site folder and its cache, and how often patients were trained on."""

    def __init__(self, place: Path, trained: list[bytes]) -> None:
        self.place, self.trained = place, trained
        self.site, self.cache = place / "ward", place / "cache"

    def at(self, part: str) -> list[Path]:
        """The files of a part."""
        found = {
            "ledger": [self.site / "ledger.sqlite"],
            "anchor": [self.site / "ledger.sqlite.anchor"],
            "claim": sorted((self.cache / "ledgers").glob("*.json")),
            "state": sorted((self.site / "state").glob("*/*.safetensors")),
        }
        return [file for file in found[part] if file.exists()]

    def put_back(self, part: str, backup: "Host", how: str) -> None:
        """Leave a part as it is (new), set it back to the backup (old), or spoil it."""
        if how == "new":
            return
        files = self.at(part)
        for file in files:
            if how == "cut":
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
            else:
                file.unlink()
        if how == "old":
            for file in backup.at(part):
                shutil.copy(file, self.place / file.relative_to(backup.place))

    def ask(self, plan: Plan, number: int, moved: float = 0.0) -> Parcel:
        """The site's answer to a question of a round, from weights that are moved by so much."""
        shared = start(plan) + np.float32(moved)
        [reply] = put(plan, self.site, [("train", number, shared)])
        until = time.monotonic() + 60
        in_time(self.site / "state", until, lambda: None, lambda: None)  # nothing goes on behind it
        return reply

    def charged(self) -> int:
        """How many rounds the site's ledger holds."""
        return len(Ledger(self.site / "ledger.sqlite").charges())

    def says(self) -> str:
        """The last message in the site's log."""
        return (self.site / "reports" / "site.log").read_text().splitlines()[-1]


def plan_of(name: str = "hostile") -> Plan:
    return private_plan(
        name,
        model={"decoder_width": 8},
        tasks={"lungs": False},
        training={"local_steps": 1},
        evaluation={"every": 3},
        federation={"rounds": 3, "wire": "fp32"},
    )


PLAN = plan_of()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every site is opened anew, no answer waits, and a round of training is a draw of noise.

    Returns a note of each draw: how often the patients were really trained on.
    """
    trained: list[bytes] = []

    def draw(model: torch.nn.Module, *_: object) -> None:
        trained.append(os.urandom(8))
        seeded = torch.Generator().manual_seed(int.from_bytes(trained[-1], "little") >> 1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=seeded))

    monkeypatch.setattr(answering, "_sites", {})
    monkeypatch.setattr(Due, "wait", lambda _: None)
    monkeypatch.setattr("client.site.train_private_round", draw)
    monkeypatch.setattr("client.site.check_trainable", lambda *_: None)
    return trained


def new_host(place: Path, nih_archive: ArchiveFactory, trained: list[bytes]) -> Host:
    """A real hospital of four patients that nobody has asked anything yet."""
    host = Host(place, trained)
    cache = small_cache(nih_archive(f"{place.name} archive", patients=4, images=1), host.cache)
    private_site(host.site, cache)
    change(host.site, cache="../cache")
    return host


def change(site: Path, **settings: Any) -> None:
    """Edit keys of a site.yaml."""
    file = site / "site.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | settings))


def copied(host: Host, place: Path) -> Host:
    shutil.copytree(host.place, place)
    return Host(place, host.trained)


def again(host: Host, template: Host) -> None:
    """Let the host be what the template was copied from it as, at the very same place."""
    answering.forget(host.site)
    shutil.rmtree(host.place)
    shutil.copytree(template.place, host.place)


def same(reply: Parcel, other: Parcel) -> bool:
    return "delta" in reply.arrays and np.array_equal(reply.arrays["delta"], other.arrays["delta"])


def forged(left: dict[str, str]) -> bool:
    """Whether ledger, anchor and claims agree, and have forgotten: the site cannot know."""
    ledger, anchor, claim = (left[part] for part in ("ledger", "anchor", "claim"))
    older = ledger == anchor == "old" and claim in ("old", "gone")
    return older or ledger == anchor == claim == "gone"


def usable(left: dict[str, str]) -> bool:
    """Whether nothing was forgotten: an anchor may be behind, claims may be, states do not count.

    Spoilt states stop the rounds that need them, and no more: that is seen apart.
    """
    return (
        left["ledger"] == "new"
        and left["anchor"] in ("new", "old")
        and left["claim"] in ("new", "old", "gone")
    )


def check(host: Host, left: dict[str, str], sent: Parcel, earlier: int) -> None:
    """Ask for what was sent, for another answer to it, and for something new.

    sent: what left for round 2. earlier: how often the patients were trained on until then.
    """
    spent = unpack_update(sent).spent
    assert spent is not None
    mirror, seen = Head(spent.entries, spent.head), 0
    for number, moved in ((2, 0.0), (2, 1e-3), (3, 0.0)):
        before = len(host.trained)
        reply = host.ask(PLAN, number, moved)
        fresh = len(host.trained) - before
        if "error" in reply.config:
            assert (reply.arrays, reply.metrics, fresh) == ({}, {}, 0), left
            assert any(way in host.says() for way in WAYS_OUT), (left, host.says())
            assert str(host.place) in host.says(), (left, host.says())
            continue
        seen += 1
        # What leaves was drawn for this question, or is the very answer that was paid for.
        assert fresh == 1 or (same(reply, sent) and (number, moved) == (2, 0.0)), left
        if not forged(left):
            assert host.charged() >= len(host.trained) - earlier + 2, left
    if forged(left):
        with pytest.raises(LedgerError, match=r"mirror|no file"):
            verify(host.site / "ledger.sqlite", mirror)
    elif not usable(left):
        # An answer that the ledger shows as paid for may go out again; nothing new is begun.
        intact = left["ledger"] == "new" and left["anchor"] in ("new", "old")
        assert len(host.trained) == earlier, left
        assert seen == (1 if intact and left["state"] == "new" else 0), left
    elif left["state"] != "cut":
        assert seen == 3, left


def combinations() -> list[dict[str, str]]:
    return [dict(zip(PARTS, left, strict=True)) for left in itertools.product(LEFT, repeat=4)]


def try_all(
    place: Path, nih_archive: ArchiveFactory, trained: list[bytes], some: list[dict[str, str]]
) -> None:
    host = new_host(place / "host", nih_archive, trained)
    assert "error" not in host.ask(PLAN, 1).config
    old = copied(host, place / "old")
    sent = host.ask(PLAN, 2)
    assert (len(trained), host.charged()) == (2, 2)
    new = copied(host, place / "new")
    for left in some:
        again(host, new)
        for part, how in left.items():
            host.put_back(part, old, how)
        check(host, left, sent, len(trained))


def test_some_disks_that_were_set_back_or_spoilt(
    tmp_path: Path, nih_archive: ArchiveFactory, quick: list[bytes]
) -> None:
    """Every pair of parts in every pair of ways, the others as they were or all set back."""
    some = [
        left
        for left in combinations()
        if sum(how != "new" for how in left.values()) <= 1
        or (left["ledger"] == "old" and left["anchor"] == "old" and left["state"] != "cut")
        or set(left.values()) in ({"old"}, {"gone"}, {"cut"})
    ]
    try_all(tmp_path, nih_archive, quick, some)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_disks_that_were_set_back_or_spoilt(
    tmp_path: Path, nih_archive: ArchiveFactory, quick: list[bytes]
) -> None:
    try_all(tmp_path, nih_archive, quick, combinations())


@pytest.fixture
def host(tmp_path: Path, nih_archive: ArchiveFactory, quick: list[bytes]) -> Host:
    """A hospital that has answered one round."""
    found = new_host(tmp_path / "host", nih_archive, quick)
    assert "error" not in found.ask(PLAN, 1).config
    return found


def refused(host: Host, number: int, plan: Plan = PLAN) -> str:
    """That nothing is trained and nothing leaves; what the log says of it."""
    before = len(host.trained)
    reply = host.ask(plan, number)
    assert "error" in reply.config
    assert (reply.arrays, reply.metrics, len(host.trained)) == ({}, {}, before)
    assert any(way in host.says() for way in WAYS_OUT), host.says()
    return host.says()


def second_site(host: Host, **settings: Any) -> Host:
    """A copy of the site's folder, beside it, on the same cache."""
    other = Host(host.place, host.trained)
    other.site = host.place / "icu"
    shutil.copytree(host.site, other.site)
    change(other.site, **settings)
    return other


def test_of_a_site_and_its_copy_one_goes_on(host: Host) -> None:
    copy = second_site(host, name="icu")
    assert "is a copy of this one" in refused(copy, 2)
    assert "error" not in host.ask(PLAN, 2).config
    assert (host.charged(), copy.charged(), len(host.trained)) == (2, 1, 2)


def test_a_copy_that_goes_on_shuts_the_original_out(host: Host) -> None:
    copy = second_site(host)
    away = host.place / "away"
    host.site.rename(away)
    assert "error" not in copy.ask(PLAN, 2).config
    away.rename(host.site)
    answering.forget(host.site)
    assert "is a copy of this one" in refused(host, 2)
    shutil.rmtree(copy.site)
    # Now it is the only one, and an older copy.
    assert "without number" in refused(host, 3)
    assert (copy.trained is host.trained, len(host.trained)) == (True, 2)


def test_a_ledger_under_another_name_is_the_same_ledger(host: Host) -> None:
    """A copy of it in the same folder does not start where the copy was made."""
    for file in host.site.glob("ledger.sqlite*"):
        shutil.copy(file, file.with_name(file.name.replace("ledger", "copy")))
    change(host.site, ledger="copy.sqlite")
    assert "is a copy of this one" in refused(host, 2)
    change(host.site, ledger="ledger.sqlite")
    assert "error" not in host.ask(PLAN, 2).config


def test_a_new_ledger_in_its_place_counts_nothing_anew(host: Host) -> None:
    for file in host.site.glob("ledger.sqlite*"):
        file.unlink()
    said = refused(host, 2)
    assert "Another one lies in its place: put the right one back" in said
    change(host.site, ledger="fresh.sqlite")
    assert "Set `ledger: " in refused(host, 2)
    for file in host.site.glob("ledger.sqlite*"):
        file.unlink()
    assert "It is missing: restore it" in refused(host, 2)
    assert len(host.trained) == 1


def test_two_hospitals_whose_ledgers_are_swapped(
    host: Host, tmp_path: Path, nih_archive: ArchiveFactory, quick: list[bytes]
) -> None:
    other = new_host(tmp_path / "other", nih_archive, quick)
    assert "error" not in other.ask(PLAN, 1).config
    shelf = tmp_path / "shelf"
    for claims_too in (False, True):
        for where, to in ((host, shelf), (other, host.place), (Host(shelf, quick), other.place)):
            for part in ("ledger", "anchor") + (("claim",) if claims_too else ()):
                for file in where.at(part):
                    there = to / file.relative_to(where.place)
                    there.parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(file, there)
        answering.forget(host.site)
        answering.forget(other.site)
        for each in (host, other):
            assert str(each.place) in refused(each, 2)
    assert len(quick) == 2


def test_an_update_does_not_leave_for_another_payment(host: Host, tmp_path: Path) -> None:
    """Kept updates that are renamed to another round, or come from another hospital's folder."""
    first = host.ask(PLAN, 1)
    [kept] = (host.site / "state").glob("*/sent-00001.safetensors")
    shutil.copy(kept, kept.with_name("sent-00002.safetensors"))
    assert not same(host.ask(PLAN, 2), first)
    assert (host.charged(), len(host.trained)) == (2, 2)
    elsewhere = second_site(host, ledger="mine.sqlite", simulated=True)
    shutil.rmtree(host.cache / "ledgers")  # so that it may play with these patients
    assert not same(elsewhere.ask(PLAN, 1), first)
    assert (Ledger(elsewhere.site / "mine.sqlite").head().entries, len(host.trained)) == (4, 3)
    assert same(host.ask(PLAN, 1), first)  # where it was paid for
    assert len(host.trained) == 3


def test_states_that_cannot_be_read_cost_nothing(host: Host) -> None:
    """However often a server asks: they are read before the charge. Deleted, the round goes on."""
    [kept, heads] = sorted(
        (host.site / "state").glob("*/*-00001.safetensors"), key=lambda file: file.name[0] != "s"
    )
    whole = heads.read_bytes()
    write_arrays(heads, {"head/findings.linear.weight": np.zeros(3, np.float32)})
    for content in (whole[:100], b"", heads.read_bytes()):
        heads.write_bytes(content)
        for _ in range(2):
            said = refused(host, 2)
            assert str(heads) in said
            assert host.charged() == 1
    heads.unlink()
    for content in (whole, b""):
        kept.write_bytes(content)
        assert str(kept) in refused(host, 1)
    kept.unlink()
    assert "error" not in host.ask(PLAN, 1).config
    assert (host.charged(), len(host.trained)) == (2, 2)


def test_a_secret_that_is_cut_or_gone(host: Host) -> None:
    salt = host.site / "ledger.sqlite.salt"
    salt.write_bytes(salt.read_bytes()[:7])
    assert str(salt) in refused(host, 2)
    salt.unlink()
    assert "error" not in host.ask(PLAN, 2).config
    assert (host.charged(), len(host.trained)) == (2, 2)


def test_claims_of_another_cache_forget_nothing(
    host: Host, tmp_path: Path, nih_archive: ArchiveFactory, quick: list[bytes]
) -> None:
    """Another hospital's claims in the place of one's own, or beside them."""
    other = new_host(tmp_path / "other", nih_archive, quick)
    assert "error" not in other.ask(PLAN, 1).config
    [claim] = other.at("claim")
    shutil.copy(claim, host.cache / "ledgers" / claim.name)
    assert "accounts already for 4 of these patients" in refused(host, 2)
    for file in host.at("claim"):
        if file.name != claim.name:
            file.unlink()
    assert "accounts already for 4 of these patients" in refused(host, 2)
    (host.cache / "ledgers" / claim.name).unlink()
    assert "error" not in host.ask(PLAN, 2).config
    assert (host.charged(), len(quick)) == (2, 3)
