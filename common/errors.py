"""Every error that Consilium raises on purpose.

    ConsiliumError                 exit code 1: the work failed
    ├── InputError                 exit code 2: bad input, as a list of Problems
    │   ├── PlanError              the plan file
    │   ├── DataError              tables, images, masks, split lists
    │   ├── CacheError             the decoded cache
    │   ├── PartitionError         a partition that cannot be met
    │   └── LayoutError            parameters that do not fit the plan's model
    ├── RefusedError               exit code 3: a site's policy or budget says no
    ├── NotEnoughSitesError        exit code 4: fewer sites than the plan's minimum
    ├── RoundFailedError           exit code 1: a round in which the sites failed
    └── UpdateRejectedError        one site's update that the firewall keeps out

`code` is a short stable word. It is the only part of an error that may leave a site:
messages hold file names and values, and stay in the site's own log.
"""

from collections.abc import Iterable
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
        return f"{where}: found {self.found}; allowed: {self.allowed}. {self.next_step}"


class ConsiliumError(Exception):
    """Base of all: `exit_code` for the command line, `code` for what may cross the border."""

    exit_code = 1
    code = "failed"


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


# The codes of refusals, by which a coordinator tells a "no" from a fault.
REFUSALS = frozenset(
    {
        "budget-spent",
        "clip-ceiling",
        "delta",
        "no-budget",
        "no-nominal-units",
        "no-such-round",
        "noise-floor",
        "non-private",
        "patients-accounted-elsewhere",
        "refused",
        "simulated",
        "unit",
    }
)


class NotEnoughSitesError(ConsiliumError):
    """Fewer sites than the plan's minimum."""

    exit_code = 4
    code = "not-enough-sites"


class RoundFailedError(ConsiliumError):
    """A round in which too many sites failed."""

    code = "round-failed"


class UpdateRejectedError(ConsiliumError):
    """A site's update that may not enter. `code` names the reason, `detail` the number.

    Codes: schema, stale-plan, stale-round, layout, not-finite, norm, weight, coverage.
    """

    def __init__(self, site: str, code: str, detail: str) -> None:
        self.site, self.code, self.detail = site, code, detail
        super().__init__(f"update of site {site!r} rejected: {code}: {detail}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the three parts, not by the message made of them."""
        return type(self), (self.site, self.code, self.detail)
