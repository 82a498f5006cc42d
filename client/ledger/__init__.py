"""The privacy ledger: append-only, bound by hashes, one per set of patients.

Reserve before, send after, never refund: a round is on the disk before its first step.
Never here: an entry that is changed or removed.
"""

from client.ledger.chain import Entry, Head, LedgerError
from client.ledger.charges import charge_of, promised, reserves, rounds_charged
from client.ledger.ledger import Cap, Ledger, Receipt, Reservation, verify
from client.ledger.registry import check_unclaimed, claim, secret_beside, witness

__all__ = [
    "Cap",
    "Entry",
    "Head",
    "Ledger",
    "LedgerError",
    "Receipt",
    "Reservation",
    "charge_of",
    "check_unclaimed",
    "claim",
    "promised",
    "reserves",
    "rounds_charged",
    "secret_beside",
    "verify",
    "witness",
]
