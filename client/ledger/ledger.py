"""The ledger of a set of patients: every use of them, charged before it happens, never refunded.

`reserve` puts the charge on the disk before the first step of a round. A crash after that leaves
the charge, whatever became of the round: nobody could prove afterwards that nothing was seen.
Epsilon is not stored. It is worked out from all charges, whatever plan or job they belong to, so a
better accountant gives a smaller number for the same past.
"""

import math
import secrets
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from client.ledger.chain import Entry, Head, canonical, damaged, head_of, must_contain
from client.ledger.charges import charge_of, reserves
from client.ledger.store import Store
from client.privacy.accounting import Charge, accountant, epsilon, most_steps
from common.checkpoint import write_bytes
from common.errors import InputError, Problem, RefusedError

SCHEMA = 1
REFUSALS_A_DAY = 100  # and as many answers that tell nothing: who asks can't fill the ledger


@dataclass(frozen=True)
class Cap:
    """A site's lifetime limit at delta. epsilon None: no limit, for plans without privacy only."""

    epsilon: float | None
    delta: float


@dataclass(frozen=True)
class Reservation:
    """What is about to be done with the patients.

    purpose: a round's training, or noised scores; unit: patient or image; charge: its private
    steps, with noise multiplier 0 for a plan without privacy; clipping_norm: L2, for the record.
    dataset: hash of who the patients are. rounds, scores: of the whole plan, when it was admitted
    as a whole, else 0: so many charges of its kind it may count on. score_noise: noise multiplier
    of such a score.
    """

    purpose: Literal["training", "metrics"]
    plan_name: str
    plan_sha256: str
    round: int
    unit: str
    charge: Charge
    clipping_norm: float
    dataset: str = ""
    rounds: int = 0
    scores: int = 0
    score_noise: float = 0.0


@dataclass(frozen=True)
class Receipt:
    """A reservation that is on the disk, and epsilon at the cap's delta before and after it."""

    entry: Entry
    epsilon_before: float
    epsilon_after: float


class Ledger:
    """An append-only list of entries in one SQLite file, bound by hashes.

    Every method reads the file anew and raises LedgerError when it is missing, damaged, locked
    for 30 s, or cannot be read or written. None repairs anything.
    """

    def __init__(self, path: Path) -> None:
        """path: the SQLite file. Nothing is read or written before `open`."""
        self.path = path
        self._store = Store(path)

    def open(self, unit: str, simulated: bool = False) -> None:
        """Start the ledger, or go on with it. Needed once, before anything else is written.

        unit: whose presence is hidden, "patient" or "image"; simulated: whether the ledger only
        plays. Both are for life. Raises RefusedError, code "unit", when the ledger counts
        another unit (charges per image bound nothing per patient), and code "simulated" when it
        does not play and the site does, or the other way round.
        """
        with self._store.writing(create=True) as draft:
            if not draft.entries:
                body = {"schema": SCHEMA, "ledger": uuid.uuid4().hex, "unit": unit}
                draft.add("open", {**body, "simulated": simulated})
                return
            self._must_count(draft.entries, unit)
            if simulated != draft.entries[0].body["simulated"]:
                raise RefusedError(
                    f"{self.path}: the key `simulated` in site.yaml was changed; a ledger keeps "
                    "what it was started with. Set it back.",
                    "simulated",
                )

    def entries(self) -> list[Entry]:
        """All entries, the chain and the anchor verified."""
        return self._store.read()

    def identity(self) -> str:
        """The ledger's own name: 32 hex digits, drawn when it was started."""
        return str(self.entries()[0].body["ledger"])

    def charges(self) -> list[Charge]:
        """What all reservations charged, in their order."""
        return self._charges(self.entries())

    def epsilon(self, delta: float) -> float:
        """Epsilon of everything charged so far; math.inf once anything was done without noise."""
        return epsilon(self.charges(), delta)

    def project(self, charge: Charge, delta: float) -> float:
        """Epsilon after a further charge. Nothing is spent."""
        return epsilon([*self.charges(), charge], delta)

    def reserve(self, reservation: Reservation, cap: Cap) -> Receipt:
        """Charge before the work. When this returns, the charge is on the disk for good.

        Raises RefusedError, code "budget-spent" with the number of steps that would fit, when
        epsilon would go over the cap, and code "unit" for another unit than the ledger's; then
        nothing is written.
        """
        charge, limit = reservation.charge, math.inf if cap.epsilon is None else cap.epsilon
        # Counting may take seconds, so it is done (and cached) before others are locked out, and
        # anew inside only if another process has charged something in between.
        self._around(self.entries(), charge, cap.delta)
        with self._store.writing() as draft:
            self._must_count(draft.entries, reservation.unit)
            before, after = self._around(draft.entries, charge, cap.delta)
            if after <= limit:
                # Named apart: on a ledger that was set back, the same charge in the same second
                # must not have the hash of the one that was forgotten, which a mirror may hold.
                body = {**_body(reservation), "nonce": secrets.token_hex(8)}
                return Receipt(draft.add("reserve", body), before, after)
        fits = most_steps(self._charges(draft.entries), charge, cap.delta, limit)
        raise RefusedError(
            f"{self.path}: {charge.steps} more steps would take epsilon from {before:.4g} to "
            f"{after:.4g} at delta {cap.delta:g}; the cap is {limit:.4g}, and {fits} steps fit",
            "budget-spent",
            fits,
        )

    def record(self, kind: str, body: Mapping[str, Any]) -> Entry:
        """Append what costs nothing: "serving", ... with JSON's own types."""
        if kind in ("open", "reserve", "refused"):
            raise ValueError(f"{kind!r} is written by its own method only")
        with self._store.writing() as draft:
            return draft.add(kind, body)

    def refused(self, body: Mapping[str, Any]) -> None:
        """Record a refusal: `action`, `plan`, `round` and `code`, for the record.

        One that is recorded already, whatever its round, is not recorded again, and no more than
        REFUSALS_A_DAY are on any day.
        """
        self._once("refused", body, ("action", "plan", "code"), ())

    def sent(self, body: Mapping[str, Any], tells: bool = True) -> None:
        """Record a message before it leaves: `action`, `plan`, `round` and `sha256`.

        The same one, asked for again, is recorded once. tells: whether there is anything in it but
        the site's name; no more than REFUSALS_A_DAY without are recorded on any day.
        """
        keys = ("action", "plan", "round", "sha256")
        self._once("sent", body, keys, None if tells else ("sha256",))

    def serving(self, body: Mapping[str, Any]) -> None:
        """Record heads that were fitted without noise, by `plan` and `round`, once each."""
        self._once("serving", body, ("plan", "round"), ())

    def policy(self, policy: Mapping[str, Any]) -> None:
        """Record the policy in force, when it is not the one recorded last."""
        with self._store.writing() as draft:
            known = [entry.body["policy"] for entry in draft.entries if entry.kind == "policy"]
            if not known or canonical(known[-1]) != canonical(dict(policy)):
                draft.add("policy", {"policy": dict(policy)})

    def head(self) -> Head:
        """Number of entries and hash of the last: what the coordinator mirrors."""
        return head_of(self.entries())

    def export(self, out: Path) -> Head:
        """Write all entries as JSON lines, in one step, to a new file.

        Raises InputError when there is such a file already, or it cannot be written.
        """
        entries = self.entries()
        if out.exists():
            found, allowed = "a file that exists", "a new file"
            raise InputError(Problem(str(out), "", found, allowed, "Choose another name."))
        write_bytes(out, "".join(canonical(asdict(entry)) + "\n" for entry in entries).encode())
        return head_of(entries)

    def _once(
        self,
        kind: str,
        body: Mapping[str, Any],
        keys: Sequence[str],
        alike: Sequence[str] | None,
    ) -> None:
        """Append an entry, unless one of its kind has the same `keys`.

        alike: of those with the same of these keys, no more than REFUSALS_A_DAY on any day (UTC):
        the ledger does not grow with whatever is asked. None: any number.
        """
        today = datetime.now(UTC).date().isoformat()
        with self._store.writing() as draft:
            known = [entry for entry in draft.entries if entry.kind == kind]
            if any(_same(entry, body, keys) for entry in known):
                return
            if alike is not None:
                recent = (entry for entry in known if entry.at.startswith(today))
                if sum(_same(entry, body, alike) for entry in recent) >= REFUSALS_A_DAY:
                    return
            draft.add(kind, body)

    def _around(self, entries: list[Entry], charge: Charge, delta: float) -> tuple[float, float]:
        """Epsilon before and after a further charge."""
        spent = self._charges(entries)
        return epsilon(spent, delta), epsilon([*spent, charge], delta)

    def _must_count(self, entries: list[Entry], unit: str) -> None:
        counted = entries[0].body["unit"]
        if unit != counted:
            raise RefusedError(
                f"{self.path}: counts by {counted}, and not by {unit}. A ledger keeps its unit for "
                f"life: set policy.unit in site.yaml back to {counted}.",
                "unit",
            )

    def _charges(self, entries: Iterable[Entry]) -> list[Charge]:
        found = []
        for entry in reserves(entries):
            try:
                found.append(charge_of(entry))
            except (KeyError, TypeError, ValueError):
                place = f"entry {entry.number}"
                raise damaged(self.path, place, "a charge that no step can have") from None
        return found


def verify(path: Path, expected: Head | None = None) -> Head:
    """Check a ledger's whole chain and its anchor, and return its end.

    expected: an end that the ledger once had, kept elsewhere, such as the coordinator's mirror.
    Only this shows a ledger that was set back together with its anchor. Raises LedgerError.
    """
    entries = Store(path).read()
    if expected is not None:
        must_contain(path, entries, expected, "the mirror")
    return head_of(entries)


def _same(entry: Entry, body: Mapping[str, Any], keys: Sequence[str]) -> bool:
    return all(entry.body.get(key) == body[key] for key in keys)


def _body(reservation: Reservation) -> dict[str, Any]:
    charge = reservation.charge
    return {
        "purpose": reservation.purpose,
        "plan_name": reservation.plan_name,
        "plan": reservation.plan_sha256,
        "round": reservation.round,
        "unit": reservation.unit,
        "noise_multiplier": charge.noise_multiplier,
        "sampling_rate": charge.sampling_rate,
        "steps": charge.steps,
        "clipping_norm": reservation.clipping_norm,
        "dataset": reservation.dataset,
        "rounds": reservation.rounds,
        "scores": reservation.scores,
        "score_noise": reservation.score_noise,
        "accountant": accountant(),
    }
