"""Small ledgers for tests."""

import sqlite3
from pathlib import Path
from typing import Any

from client.ledger import Cap, Ledger, Reservation
from client.privacy.accounting import Charge

DELTA = 1e-5
CAP = Cap(3.0, DELTA)
STEP = Charge(2.0, 0.1, 5)


def reservation(charge: Charge = STEP, number: int = 1, unit: str = "patient") -> Reservation:
    return Reservation("training", "a plan", "f" * 64, number, unit, charge, 1.0)


def started(folder: Path, rounds: int = 0) -> Ledger:
    """An open ledger with so many rounds reserved."""
    ledger = Ledger(folder / "ledger.sqlite")
    ledger.open("patient")
    for number in range(1, rounds + 1):
        ledger.reserve(reservation(number=number), CAP)
    return ledger


def tamper(ledger: Ledger, statement: str, *values: Any) -> None:
    """Change the file behind the ledger's back."""
    with sqlite3.connect(ledger.path) as db:
        db.execute(statement, values)
    db.close()
