"""Decoders written in C print to the terminal by themselves: here is how they are silenced."""

import os
from threading import Lock


class Unheard:
    """Lets nothing reach the terminal that decoders in C print to it behind Python's back.

    The terminal is one for all threads: it is closed while any of them decodes.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._terminal = Lock(), 0, -1

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._terminal = _onto_nothing()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._terminal >= 0:
                os.dup2(self._terminal, 2)
                os.close(self._terminal)


def _onto_nothing() -> int:
    """Let error output go nowhere. Returns a descriptor of where it went, -1 for nowhere."""
    try:
        terminal = os.dup(2)
    except OSError:  # there is none
        return -1
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    return terminal


UNHEARD = Unheard()
