"""Every error that Consilium raises on purpose.

    ConsiliumError                 exit code 1: the work failed
    ├── InputError                 exit code 2: bad input, as a list of Problems
    │   ├── PlanError              the plan file
    │   ├── DataError              tables, images, masks, split lists
    │   ├── CacheError             the decoded cache
    │   ├── PartitionError         a partition that cannot be met
    │   └── LayoutError            parameters that do not fit the plan's model
    ├── RefusedError               exit code 3: a site's policy or budget says no
    ├── FailedError            exit code 1: a private question that came to nothing
    ├── NotEnoughSitesError        exit code 4: fewer sites than the plan's minimum
    ├── RoundFailedError           exit code 1: a round in which the sites failed
    ├── StepRejectedError          an aggregate that the model does not take
    └── UpdateRejectedError        one site's update that the firewall keeps out

`code` is a short stable word. It is the only part of an error that may leave a site:
messages hold file names and values, and stay in the site's own log.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing wrong with the input, in the words its user needs.

    file: which file or folder; at: row, key or image in it ("" if the file as a whole);
    found: the value found; allowed: what is allowed; next_step: what to do now.
    """

    file: str
    at: str
    found: str
    allowed: str
    next_step: str

    def __str__(self) -> str:
        where = f"{self.file}: {self.at}" if self.at else self.file
        return escaped(f"{where}: found {self.found}; allowed: {self.allowed}. {self.next_step}")


def escaped(text: str, keep: str = "") -> str:
    r"""The text on one line that any terminal, file or page takes: a name may hold anything.

    Newlines, control and invisible characters are spelled as in Python (`\n`, `\x1b`), a byte of
    a file name that is not UTF-8 as that byte (`\xe9`). keep: characters that stay as they are.
    """
    return "".join(c if c.isprintable() or c in keep else _spelled(c) for c in text)


def _spelled(character: str) -> str:
    """How a character that cannot be printed is written."""
    if "\udc80" <= character <= "\udcff":  # how Python holds a byte that is no text
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


class ConsiliumError(Exception):
    """Base of all: `exit_code` for the command line, `code` for what may cross the border."""

    exit_code = 1
    code = "error"


class InputError(ConsiliumError):
    """Bad input. Holds every Problem found, so that the user mends all of them at once."""

    exit_code = 2
    code = "bad-input"
    shown = 20  # a broken 112,120-row table must not print 112,120 lines

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        lines = [str(problem) for problem in self.problems[: self.shown]]
        hidden = len(self.problems) - len(lines)
        if hidden > 0:
            lines.append(f"... and {hidden} more of this kind")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the Problems: by default the message would come back as the argument."""
        return type(self), (self.problems,)


class PlanError(InputError):
    """A plan that is not valid."""

    code = "bad-plan"


class DataError(InputError):
    """Tables, images, masks, split lists or site folders with faults."""

    code = "bad-data"


class CacheError(InputError):
    """A cache that is missing, damaged, or of another archive or size."""

    code = "bad-cache"


class PartitionError(InputError):
    """A partition that the data cannot meet."""

    code = "bad-partition"


class LayoutError(InputError):
    """Parameters that do not fit the plan's model."""

    code = "layout-mismatch"


class RefusedError(ConsiliumError):
    """A site's policy or budget says no."""

    exit_code = 3
    code = "refused"

    def __init__(self, message: str, code: str = "refused", fits: int | None = None) -> None:
        """code: the reason, which may leave the site. fits: steps that the budget still allows."""
        super().__init__(message)
        self.code, self.fits = code, fits

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with the code and the number, too."""
        return type(self), (str(self), self.code, self.fits)


class FailedError(ConsiliumError):
    """An admitted private question came to nothing, whatever the reason: all have this one code.

    What went wrong after a site began to look at its data tells of that data. Its text stays in
    the site's own log.
    """

    code = "failed"


# The codes of refusals, by which a coordinator tells a "no" from a fault, and what they mean.
REFUSALS: Mapping[str, str] = {
    "non-private": "the plan has no differential privacy, and the policy refuses such plans",
    "no-budget": "the policy sets no lifetime cap, so no private plan may run",
    "budget-spent": "the plan would exceed the lifetime cap",
    "unit": "the plan or the ledger protects another unit than the policy asks for",
    "noise-floor": "the plan has less noise than the policy's floor",
    "clip-ceiling": "the plan's clipping norm is above the policy's ceiling",
    "ceiling": "the plan asks for more memory or time than the policy's ceilings allow",
    "delta": "the plan's delta is above the policy's, or a delta is too large for so many units",
    "no-nominal-units": "the site has not declared how many units it has",
    "no-such-round": "the plan has no such round",
    "refused": "the site refused",
    "simulated": "the ledger is of a simulated site, and the site is not, or the other way round",
    "patients-accounted-elsewhere": "another ledger already accounts for one of the patients",
}


# Every code that may stand for a site in what the server writes and prints. A site may send any
# text instead of one of ours: it becomes "unknown-error". The second half are Flower's own.
SITE_CODES = frozenset(REFUSALS) | {
    *("failed", "bad-input", "bad-plan", "bad-data", "bad-cache", "bad-partition"),
    *("ledger-damaged", "ledger-locked", "nothing-to-learn", "diverged"),
    *("layout-mismatch", "internal", "base-missing", "malformed-reply", "unknown-error"),
    *("unknown", "load-client-app-exception", "client-app-raised-exception"),
    *("message-unavailable", "reply-message-unavailable", "node-unavailable"),
    *("mod-failed-precondition", "invalid-fab", "client-app-crashed"),
}


class NotEnoughSitesError(ConsiliumError):
    """Fewer sites than the plan's minimum."""

    exit_code = 4
    code = "not-enough-sites"


class RoundFailedError(ConsiliumError):
    """A round in which too many sites failed."""

    code = "round-failed"


class StepRejectedError(ConsiliumError):
    """An aggregate that the model does not take. `code` names the reason, `detail` the number.

    Codes: not-finite, too-long.
    """

    code = "step-rejected"

    def __init__(self, code: str, detail: str) -> None:
        self.code, self.detail = code, detail
        super().__init__(f"{code}: {detail}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the two parts, not by the message made of them."""
        return type(self), (self.code, self.detail)


class UpdateRejectedError(ConsiliumError):
    """A site's update that may not enter. `code` names the reason, `detail` the number.

    Codes: schema, stale-plan, stale-round, layout, not-finite, norm, weight, coverage, name.
    """

    def __init__(self, site: str, code: str, detail: str) -> None:
        self.site, self.code, self.detail = site, code, detail
        super().__init__(f"update of site {site!r} rejected: {code}: {detail}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the three parts, not by the message made of them."""
        return type(self), (self.site, self.code, self.detail)
