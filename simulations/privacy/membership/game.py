"""The membership game: whoever sees all answers guesses whether the target was among the patients.

A fixed budget of plays. In each, a coin decides which of two worlds answers the coordinator's
questions. From the first half of the plays, whose coins the attacker is told, it learns which
single number of the answers tells the worlds apart best, and where to draw the line; the second
half counts. It knows everything but the coin: also in which direction the target moves an update.

All units take part in every step of the game, so a charge is a Gaussian mechanism, and all of
them together are mu-GDP with mu^2 = sum of steps / noise multiplier^2. No attacker can then be
right in more than Phi(mu / 2) of the plays (Dong, Roth and Su, "Gaussian differential privacy",
JRSS B 2022, definition 2.6 and corollary 3.3).
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import binom, norm

from client.ledger import Ledger
from common.parameters import Flat
from common.wire import Parcel
from simulations.privacy.bound import Guesses
from simulations.privacy.membership.world import fresh

Feature = dict[str, float]
Coins = npt.NDArray[np.bool_]
CHANCE = 1e-6  # that a sound site fails the game
CLIP = 1e30


@dataclass(frozen=True)
class Outcome:
    """right of plays: the attacker's guesses that count. feature: the number it looked at.

    guesses: the same, with and without the target.
    """

    right: int
    plays: int
    feature: str
    guesses: Guesses = field(default_factory=Guesses)

    def allowed(self, mu: float, chance: float = CHANCE) -> int:
        """The most right guesses that mu-GDP lets pass, but for `chance`."""
        return int(binom.isf(chance, self.plays, float(norm.cdf(mu / 2))))


def spent(ledger: Path) -> float:
    """mu of all that a ledger charged, where every unit took part in every step. 0 for none.

    Raises ValueError for a step that only some units took part in.
    """
    charges = Ledger(ledger).charges() if ledger.exists() else []
    if any(charge.sampling_rate != 1.0 for charge in charges):
        raise ValueError("mu is known for steps in which every unit takes part")
    return math.sqrt(sum(charge.steps / charge.noise_multiplier**2 for charge in charges))


def play(
    worlds: dict[bool, Path],
    place: Path,
    ask: Callable[[Path], list[Parcel]],
    plays: int,
    direction: Flat | None = None,
) -> Outcome:
    """Play `plays` times to learn and as often to count.

    place: where the asked site lies. direction: (P,) float32, along which the target moves the
    updates.
    """
    coins = flipped(2 * plays)
    seen = [features(ask(fresh(worlds[bool(coin)], place)), direction) for coin in coins]
    return guessed(seen, coins)


def flipped(plays: int) -> Coins:
    """Coins for so many plays, (N,) bool, as many of each side as can be, in a random order."""
    coins: Coins = np.random.default_rng().permutation(plays) % 2 == 0
    return coins


def guessed(seen: Sequence[Feature], coins: Coins) -> Outcome:
    """Learn from the first half of the plays, whose coins are told, and guess those of the rest.

    seen: what each play showed. coins: (N,) bool, whether the target was there.
    """
    plays = len(seen) // 2
    told, counted = slice(0, plays), slice(plays, None)
    # What only some answers have tells, too.
    names = sorted(set().union(*seen))
    table = np.array([[each.get(name, -CLIP) for name in names] for each in seen])
    name, line, sign = _best(table[told], coins[told])
    guesses = Guesses.of(sign * table[counted, name] > sign * line, coins[counted])
    return Outcome(guesses.right, guesses.plays, names[name], guesses)


def words(answer: Parcel) -> str:
    """All that an answer shows but noised numbers and what a ledger draws at random.

    Keys, codes, every public number, types and sizes.
    """
    config = dict(answer.config)
    spent = json.loads(str(config.pop("spent", "{}")))
    spent.pop("head", None)  # the hash of a chain that begins with random bytes
    shapes = sorted((name, array.dtype.str, array.shape) for name, array in answer.arrays.items())
    return repr([sorted(config.items()), sorted(spent.items()), sorted(answer.metrics), shapes])


def features(answers: list[Parcel], direction: Flat | None) -> Feature:
    """Everything that answers show, as numbers: words, metrics, and the updates.

    direction: (P,) float32, along which the target moves the updates, if it is known.
    """
    found: Feature = {}
    for number, answer in enumerate(answers):
        found[f"{number} words"] = _number(words(answer))
        for key, value in answer.metrics.items():
            found[f"{number} {key}"] = _real(value)
        for name, array in answer.arrays.items():
            found |= {f"{number} {name} {k}": v for k, v in _vector(array).items()}
            if direction is not None:
                along = np.nan_to_num(array.astype(np.float64)) @ direction
                found[f"{number} {name} along the target"] = _real(along)
    return found


def _vector(delta: Flat | npt.NDArray[np.float32]) -> Feature:
    """What a vector shows without knowing the model: its length, its extremes, parts of it."""
    values = delta.astype(np.float64)
    parts = np.array_split(values, 32)
    shown = {
        "size": float(values.size),
        "finite": float(np.isfinite(values).mean()),
        "zeros": float((values == 0).mean()),
        "largest": float(np.abs(values).max(initial=0.0)),
        "length": float(np.linalg.norm(values)),
    }
    shown |= {f"length of part {n}": float(np.linalg.norm(part)) for n, part in enumerate(parts)}
    shown |= {f"sum of part {n}": float(part.sum()) for n, part in enumerate(parts)}
    return {name: _real(value) for name, value in shown.items()}


def _real(value: object) -> float:
    """A number that can be compared: infinities and NaN at the ends."""
    number = float(value)  # type: ignore[arg-type]
    return float(np.clip(np.nan_to_num(number, nan=-CLIP, posinf=CLIP), -CLIP, CLIP))


def _number(text: str) -> float:
    """A text as a number that differs when the text does."""
    return float(int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big"))


def _best(table: npt.NDArray[np.float64], coins: Coins) -> tuple[int, float, int]:
    """The column, the line and the side that tell the told plays apart best."""
    best, choice = -1.0, (0, 0.0, 1)
    for column in range(table.shape[1]):
        values = np.unique(table[:, column])
        lines = (values[:-1] + values[1:]) / 2 if len(values) > 1 else values
        for sign in (1, -1):
            guesses = sign * table[:, column][None, :] > sign * lines[:, None]
            right = (guesses == coins).mean(axis=1)
            # Of equally good lines the middle one: it lies far from both worlds.
            top = np.flatnonzero(right == right.max())
            if right.max() > best:
                best = float(right.max())
                choice = (column, float(lines[top[len(top) // 2]]), sign)
    return choice
