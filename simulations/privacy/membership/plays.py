"""Plays of an attack, one after the other, and what they let a coordinator see."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from client.answer import forget
from client.ledger import Ledger
from client.privacy.accounting import Charge
from common.wire import Parcel
from simulations.privacy.membership.attack import (
    Attack,
    BlindError,
    Opening,
    answer_after,
    prepare,
)
from simulations.privacy.membership.coordinator import Reply, timed
from simulations.privacy.membership.game import Coins, Feature, features, flipped, words
from simulations.privacy.membership.mechanism import Mechanism
from simulations.privacy.membership.world import fresh

LONG = 24  # images of the target whose work takes long
TICK = 0.02  # seconds: below it, times are the machine's, not the site's
SHORTEST, MARGIN = 0.25, 3.0  # of a deadline: seconds, and times what a play took without one


@dataclass(frozen=True)
class Seen:
    """What the plays of an attack showed: coins (N,) bool, and of each play its replies.

    charges: of one play, as the played site's own ledger holds them.
    """

    attack: Attack
    coins: Coins
    replies: list[list[Reply]]
    charges: list[Charge]

    def answers(self, number: int) -> list[Parcel]:
        """The answers of a play."""
        return [reply.answer for reply in self.replies[number]]


def watch_updates(
    place: Path, mechanism: Mechanism, opening: Opening, plays: int, advance: Callable[[], None]
) -> Seen:
    """Plays that look at updates: of sites that answer at once."""
    attack = prepare(place / "loud", mechanism, opening)
    _try(attack, place / "site")
    return _play(attack, place / "site", plays, advance)


def watch_clock(
    place: Path, mechanism: Mechanism, opening: Opening, plays: int, advance: Callable[[], None]
) -> tuple[Seen, float]:
    """Plays that look at times, of sites with a deadline, and that deadline in seconds.

    Every unit is in the one step, so that the target's work always shows.
    """
    each = replace(mechanism, sampling_rate=1.0, steps=1)
    attack = prepare(place / "clock", each, replace(opening, rounds=1), LONG)
    deadline = max(SHORTEST, MARGIN * _try(attack, place / "site"))
    answer_after(attack, deadline)
    return _play(attack, place / "site", 2 * plays, advance), deadline


def _try(attack: Attack, place: Path) -> float:
    """Seconds that the slowest answer takes. Raises BlindError when neither world answers."""
    slowest, failed = 0.0, []
    for world in attack.worlds.values():
        replies = timed(attack.plan, fresh(world, place), attack.questions)
        slowest = max(slowest, *(reply.seconds for reply in replies))
        failed += [str(r.answer.config["error"]) for r in replies if "error" in r.answer.config][:1]
    if len(failed) == len(attack.worlds):
        log = place / "reports" / "site.log"
        lines = log.read_text(encoding="utf-8").strip().splitlines() if log.exists() else []
        why = f": {lines[-1]}" if lines else ""
        raise BlindError(
            f"audit: the played sites answer {failed[0]!r}{why}. Such plays prove nothing: mend "
            "that, or choose another --engine."
        )
    return slowest


def _play(attack: Attack, place: Path, plays: int, advance: Callable[[], None]) -> Seen:
    """Play with fresh sites, which hold the target as the coins fall."""
    coins, replies = flipped(plays), []
    for coin in coins:
        site = fresh(attack.worlds[bool(coin)], place)
        replies.append(timed(attack.plan, site, attack.questions))
        advance()
    charges = Ledger(place / "ledger.sqlite").charges()
    forget(place)
    return Seen(attack, coins, replies, charges)


def shown(answers: Sequence[Parcel]) -> Feature:
    """Everything that answers show but their words, which are looked at apart."""
    everything = features(list(answers), None)
    return {name: value for name, value in everything.items() if not name.endswith(" words")}


def late(replies: Sequence[Reply], deadline: float) -> Feature:
    """By how many ticks each answer came after, or before, its deadline."""
    return {
        f"{number} ticks late": float(math.floor((reply.seconds - deadline) / TICK))
        for number, reply in enumerate(replies)
    }


def different(seen: Seen) -> list[str]:
    """Which answers have keys, codes, public numbers or sizes that the other world's have not."""
    found = []
    for number, (action, _, _) in enumerate(seen.attack.questions):
        kinds: dict[bool, dict[str, Parcel]] = {True: {}, False: {}}
        for coin, replies in zip(seen.coins, seen.replies, strict=True):
            answer = replies[number].answer
            kinds[bool(coin)].setdefault(words(answer), answer)
        only = {there: kinds[there].keys() - kinds[not there].keys() for there in (True, False)}
        if only[True] or only[False]:
            told = {
                there: " or ".join(sorted({_brief(kinds[there][each]) for each in kinds[there]}))
                for there in (True, False)
            }
            found.append(
                f"codes, keys or sizes of the answer to {action} (with the patient: {told[True]}; "
                f"without: {told[False]})"
            )
    return list(dict.fromkeys(found))


def _brief(answer: Parcel) -> str:
    """An answer's code, or how much it holds."""
    if "error" in answer.config:
        return f"code {answer.config['error']}"
    keys = len(answer.arrays) + len(answer.config) + len(answer.metrics)
    return f"{keys} keys and {answer.bytes:,} bytes"
