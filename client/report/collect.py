"""From a site folder to the facts of its report: the settings, the verified ledger, the audit."""

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from client.ledger import Entry, Ledger, LedgerError, charge_of, reserves
from client.privacy.accounting import accountant, epsilon
from client.report import spend
from client.report.facts import (
    Audit,
    Chain,
    Message,
    Note,
    PolicyChange,
    PrivacyFacts,
    Refusal,
)
from client.settings import SiteFolder
from common.checkpoint import read_json
from common.errors import InputError, Problem

AUDIT = "audit.json"
PACKAGES = ("consilium", "torch", "opacus")


def ledger_path(folder: SiteFolder) -> Path:
    """Where the site's ledger lies. Raises InputError when nothing was ever charged."""
    path = folder.path / folder.settings.ledger
    if not has_ledger(folder):
        allowed = "a ledger, which the first round of a plan starts"
        next_step = "Check the key `ledger` of site.yaml, or let a plan run first."
        raise InputError(Problem(str(path), "", "nothing", allowed, next_step))
    return path


def has_ledger(folder: SiteFolder) -> bool:
    """Whether there is a ledger, or what is left of one that was deleted."""
    path = folder.path / folder.settings.ledger
    return path.exists() or path.with_name(path.name + ".anchor").exists()


def collect(folder: SiteFolder, now: datetime | None = None) -> PrivacyFacts:
    """Read and check everything. now: the report's date, by default the present.

    Raises InputError without a ledger, LedgerError when it is not in order: there is nothing
    true to say then. Raises InputError for an audit file of another shape.
    """
    path = ledger_path(folder)
    entries = Ledger(path).entries()  # the whole chain and the anchor, verified
    audit = read_audit(folder.reports / AUDIT)
    try:
        return _facts(folder, entries, audit, now or datetime.now(UTC))
    except (KeyError, TypeError, ValueError) as error:
        found = f"an entry of another shape ({type(error).__name__}: {str(error)[:80]})"
        step = "Read it with the version of Consilium that wrote it."
        raise LedgerError(Problem(str(path), "", found, "entries as we write them", step)) from None


def _facts(
    folder: SiteFolder, entries: Sequence[Entry], audit: Audit | None, now: datetime
) -> PrivacyFacts:
    settings, policy = folder.settings, folder.settings.policy
    charged = reserves(entries)
    charges = [charge_of(entry) for entry in charged]
    private = [charge for charge in charges if charge.noise_multiplier > 0]
    changes = policy_changes(entries)
    recorded = [entry.body["policy"] for entry in entries if entry.kind == "policy"]
    return PrivacyFacts(
        site=settings.name,
        made_at=now.isoformat(timespec="seconds"),
        simulated=bool(entries[0].body["simulated"]),
        unit=entries[0].body["unit"],  # what the charges count; the policy may have changed
        nominal_units=settings.nominal_units,
        delta=policy.delta,
        cap=policy.epsilon,
        epsilon=spend.finite(epsilon(charges, policy.delta)),
        epsilon_private=spend.finite(epsilon(private, policy.delta)),
        charges=len(charges),
        runs=spend.runs(entries, policy.delta),
        course=spend.course(entries, policy.delta),
        messages=messages(entries),
        refusals=refusals(entries),
        notes=notes(entries),
        policy=policy,
        policy_recorded=bool(recorded) and recorded[-1] == policy.model_dump(mode="json"),
        policy_changes=changes,
        chain=_chain(entries),
        accountant=accountant(),
        accountants=tuple(dict.fromkeys(str(e.body["accountant"]) for e in charged)),
        versions={name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        audit=audit,
    )


def messages(entries: Sequence[Entry]) -> tuple[Message, ...]:
    """Everything that left, in order."""
    return tuple(
        Message(
            at=entry.at,
            action=entry.body["action"],
            plan_sha256=entry.body["plan"],
            round=entry.body["round"],
            bytes=entry.body["bytes"],
            keys=tuple(entry.body["keys"]),
            sha256=entry.body["sha256"],
        )
        for entry in entries
        if entry.kind == "sent"
    )


def refusals(entries: Sequence[Entry]) -> tuple[Refusal, ...]:
    """Every request that was turned down, in order."""
    return tuple(
        Refusal(
            at=entry.at,
            action=entry.body["action"],
            plan_sha256=entry.body["plan"],
            round=entry.body["round"],
            code=entry.body["code"],
        )
        for entry in entries
        if entry.kind == "refused"
    )


def notes(entries: Sequence[Entry]) -> tuple[Note, ...]:
    """Heads that were fitted without noise, and changes of the patients, in order."""
    found, known = [], ""
    for entry in entries:
        if entry.kind == "serving":
            text = f"plan {entry.body['plan'][:12]}, after round {entry.body['round']}"
            found.append(Note(at=entry.at, kind="serving", text=text))
        elif entry.kind == "reserve":
            patients = str(entry.body["dataset"])
            if known not in ("", patients):
                text = f"patients {patients[:12]}"
                found.append(Note(at=entry.at, kind="data", text=text))
            known = patients
    return tuple(found)


def policy_changes(entries: Sequence[Entry]) -> tuple[PolicyChange, ...]:
    """The policies that were in force: the first one, then what each later one changed."""
    changes, before = [], None
    for entry in entries:
        if entry.kind != "policy":
            continue
        after = entry.body["policy"]
        changed: dict[str, tuple[Any, Any]] = {}
        if before is not None:
            names = sorted({*before, *after})
            changed = {
                name: (before.get(name), after.get(name))
                for name in names
                if before.get(name) != after.get(name)
            }
        changes.append(PolicyChange(at=entry.at, changed=changed))
        before = after
    return tuple(changes)


def read_audit(file: Path) -> Audit | None:
    """The result of the last audit, None without one. Raises InputError for another shape."""
    if not file.exists():
        return None
    try:
        return Audit.model_validate(read_json(file))
    except ValidationError as error:
        raise InputError(
            Problem(
                str(file),
                ".".join(str(part) for part in detail["loc"]),
                repr(detail["input"])[:80],
                detail["msg"].removeprefix("Input should be "),
                "Run `consilium-sim audit --out` again, or remove the file.",
            )
            for detail in error.errors(include_url=False)
        ) from None


def _chain(entries: Sequence[Entry]) -> Chain:
    first = entries[0]
    datasets = [str(entry.body["dataset"]) for entry in reserves(entries)]
    return Chain(
        ledger=first.body["ledger"],
        dataset=datasets[-1] if datasets else "",
        opened_at=first.at,
        entries=entries[-1].number,
        head=entries[-1].sha256,
        verified=True,
    )
