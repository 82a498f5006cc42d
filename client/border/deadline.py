"""One shape of answer: what was admitted is answered at a public time, whatever became of it.

How long work took, whether it failed and how tell of the data that it saw. So the work of an
admitted private question runs in a thread of its own; what it gave leaves exactly at the deadline
after the question came. Work that fails or is late gives one constant answer, at the same time.
"""

import fcntl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from common.errors import FailedError

Answer = TypeVar("Answer")

# One thread a site: late work ends before the next question's work begins.
_threads: dict[Path, ThreadPoolExecutor] = {}


class Due:
    """When the answer to a question leaves: at once, unless `at` says otherwise.

    until: seconds of time.monotonic(), None for at once.
    """

    def __init__(self) -> None:
        """The question has just come."""
        self._came = time.monotonic()
        self.until: float | None = None

    def at(self, deadline: float | None) -> None:
        """The answer leaves `deadline` seconds after the question came; None: at once."""
        self.until = None if deadline is None else self._came + deadline

    def wait(self) -> None:
        """Return when the answer is due."""
        if self.until is not None:
            time.sleep(max(0.0, self.until - time.monotonic()))


def check_time(until: float | None) -> None:
    """Raise FailedError once `until`, in seconds of time.monotonic(), is over; None: never."""
    if until is not None and time.monotonic() >= until:
        raise FailedError("not done in time: policy.deadline in site.yaml is too short for it")


def in_time(
    place: Path,
    until: float | None,
    work: Callable[[], Answer],
    local: Callable[[], None],
) -> Answer:
    """What `work` gives, if it is there by `until` (seconds of time.monotonic(), None: no limit).

    local: what the site does for itself once its answer is fixed; it can no longer change it, and
    must not raise. place: a folder of the site, in which a file keeps other processes waiting.
    Raises what `work` raised, or FailedError when it is late. Late work goes on, and its answer
    never leaves; work that has not begun by then never begins.
    """
    if until is None:
        answer = work()
        local()
        return answer
    fixed: Future[Answer] = Future()

    def run() -> None:
        try:
            with _alone(place):
                check_time(until)
                fixed.set_result(work())
                local()
        except BaseException as error:  # of any kind: nothing may end the thread without an answer
            if not fixed.done():
                odd = not isinstance(error, Exception)
                fixed.set_exception(FailedError(repr(error)) if odd else error)

    _thread(place).submit(run)
    try:
        return fixed.result(timeout=max(0.0, until - time.monotonic()))
    except TimeoutError:
        check_time(until)
        raise  # the work's own


def afterwards(place: Path, until: float | None, local: Callable[[], None]) -> None:
    """Let the site do something for itself, before `until` if there is one, and go on at once.

    local: must not raise.
    """
    if until is None:
        local()
        return

    def run() -> None:
        with _alone(place):
            if time.monotonic() < until:
                local()

    _thread(place).submit(run)


def end(place: Path) -> None:
    """Wait until a site's work is done, and end its thread. place: as for `in_time`."""
    thread = _threads.pop(place, None)
    if thread is not None:
        thread.shutdown()


def _thread(place: Path) -> ThreadPoolExecutor:
    if place not in _threads:
        _threads[place] = ThreadPoolExecutor(1, "site")
    return _threads[place]


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Of two processes of a site, one works at a time."""
    place.mkdir(parents=True, exist_ok=True)
    with (place / ".working").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
