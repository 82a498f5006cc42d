"""The privacy ledger: append-only, bound by hashes, one per set of patients.

Reserve before, send after, never refund: a round is on the disk before its first step.
"""

from client.ledger.chain import Entry, Head, LedgerError
from client.ledger.ledger import Cap, Ledger, Receipt, Reservation, verify
from client.ledger.registry import claim, secret_beside

__all__ = [
    "Cap",
    "Entry",
    "Head",
    "Ledger",
    "LedgerError",
    "Receipt",
    "Reservation",
    "claim",
    "secret_beside",
    "verify",
]
