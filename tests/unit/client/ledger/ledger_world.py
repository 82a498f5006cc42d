"""Site folders with a real ledger in them, without any image."""

from pathlib import Path
from typing import Any

import yaml

from client.ledger import Cap, Ledger, Reservation
from client.privacy.accounting import Charge
from client.settings import SiteFolder, open_site_folder

PLAN_A, PLAN_B, PLAN_C = "a1" * 32, "b2" * 32, "c3" * 32
NAMES = {PLAN_A: "winter", PLAN_B: "spring", PLAN_C: "pilot"}
KEYS = ["covers", "delta", "layout", "plan", "round", "schema", "seconds", "site", "weight"]
POLICY: dict[str, Any] = {"epsilon": 8.0, "delta": 1e-5, "deadline": 900.0}


def make_site(folder: Path, policy: dict[str, Any] | None = None, **settings: Any) -> SiteFolder:
    """Write a site.yaml and open the folder; no ledger yet."""
    folder.mkdir(parents=True, exist_ok=True)
    value = {"name": "north", "cache": "cache", "nominal_units": 4000}
    value["policy"] = POLICY if policy is None else {"deadline": 900.0} | policy
    (folder / "site.yaml").write_text(yaml.safe_dump(value | settings))
    return open_site_folder(folder)


class Book:
    """A site's ledger, written as the site itself would."""

    def __init__(self, site: SiteFolder) -> None:
        self.ledger = Ledger(site.path / site.settings.ledger)
        self.policy = site.settings.policy
        self.ledger.open(self.policy.unit, site.settings.simulated)
        self.ledger.policy(self.policy.model_dump(mode="json"))

    def reserve(
        self, plan: str, number: int, charge: Charge, purpose: Any = "training", clip: float = 1.0
    ) -> None:
        """Charge a round or a score."""
        unit, name = self.policy.unit, NAMES.get(plan, plan)
        cap = Cap(None if charge.noise_multiplier == 0 else self.policy.epsilon, self.policy.delta)
        self.ledger.reserve(
            Reservation(purpose, name, plan, number, unit, charge, clip, "d5" * 32), cap
        )

    def sent(self, plan: str, number: int, action: str = "train", size: int = 812_344) -> None:
        """Note a message."""
        body = {"action": action, "plan": plan, "round": number, "bytes": size}
        keys = KEYS if action == "train" else ["round", "site"]
        self.ledger.record("sent", body | {"keys": keys, "sha256": f"{number:02x}" * 32})

    def refused(self, plan: str, number: int, code: str) -> None:
        """Note a refusal."""
        body = {"action": "train", "plan": plan, "round": number, "code": code}
        self.ledger.refused(body)


# Every unit in every step: then epsilon takes a tenth of the time, which these tests need often.
CHARGE_A, CHARGE_B = Charge(10.0, 1.0, 3), Charge(8.0, 1.0, 2)
UNPROTECTED = Charge(0.0, 1.0, 1)


def two_runs(site: SiteFolder) -> Book:
    """Four rounds of one plan, a crash in the third, then two of another until it is refused."""
    book = Book(site)
    for number in range(1, 5):
        book.reserve(PLAN_A, number, CHARGE_A)
        if number != 3:
            book.sent(PLAN_A, number)
    book.ledger.record("serving", {"plan": PLAN_A, "round": 4})
    book.sent(PLAN_A, 4, "finish", 0)
    for number in (1, 2):
        book.reserve(PLAN_B, number, CHARGE_B, clip=0.5)
        book.sent(PLAN_B, number)
    book.reserve(PLAN_B, 2, Charge(10.0, 1.0, 1), "metrics")
    book.refused(PLAN_B, 3, "budget-spent")
    return book
