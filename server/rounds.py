"""The rounds of a federation: ask, check, aggregate, save, and stop honestly.

Our loop replaces Flower's `Strategy.start`, which cannot resume, waits for ever, and ends
"normally" when every site failed. It knows Flower only through the strategies' arithmetic.
"""

import time
from collections.abc import Callable

import numpy as np

from common.checkpoint import array_sha256
from common.errors import (
    NotEnoughSitesError,
    RefusedError,
    RoundFailedError,
    UpdateRejectedError,
)
from common.parameters import Flat, Layout
from common.plan import Plan
from common.update import Broadcast
from common.wire import Parcel, pack_broadcast, unpack_metrics, unpack_update
from server.firewall import Expected, check_update, screen_norms
from server.records import (
    Answers,
    better,
    first_weights,
    heavy_site,
    progress_line,
    round_record,
)
from server.roster import Roster, clean_code
from server.run_folder import ROUNDS, RunFolder, State
from server.strategy import Aggregator
from server.transport import BASE_MISSING, FINISH, HELLO, TRAIN, Reply, Transport

# Takes one site's good answer in and says in words what it was; whatever it raises is that
# site's rejection, so the answer is taken in last.
Judge = Callable[[Answers, int, Parcel], str]

POLL_SECONDS = 0.2  # between two looks at who is connected
MOST_STEPS = 10**9  # a site that says that more would fit is not believed
DETAIL = 200  # characters of a rejection that are kept: a site may send any text


class Federation:
    """One run of a plan over whatever sites the transport reaches."""

    def __init__(
        self,
        plan: Plan,
        layout: Layout,
        folder: RunFolder,
        transport: Transport,
        say: Callable[[str], None],
        start_timeout: float = 300.0,
    ) -> None:
        """say: takes each line of progress. start_timeout: seconds to wait for min_sites."""
        self._plan, self._layout, self._folder = plan, layout, folder
        self._transport, self._say, self._start_timeout = transport, say, start_timeout
        self._aggregator = Aggregator(plan.federation.strategy)
        self._aggregator.restore(folder.state.strategy)
        self._roster = Roster()
        self._base_sha256 = array_sha256(folder.base)
        self._weights = first_weights(folder.path / ROUNDS)

    def run(self) -> None:
        """Do every round that is not finished yet, then let the sites fit their final heads.

        Raises NotEnoughSitesError when fewer than min_sites come, RoundFailedError when a
        round has fewer than min_sites good updates. The caller records the failure.
        """
        rounds = self._plan.federation.rounds
        if self._folder.state.round:
            self._say(f"resumed after round {self._folder.state.round}/{rounds}")
        self._gather()
        while self._folder.state.round < rounds:
            self._round(self._folder.state.round + 1)
        self._finish()

    def _gather(self) -> None:
        """Greet the nodes until min_sites have answered; say who arrived."""
        deadline = time.monotonic() + self._start_timeout
        needed = self._plan.federation.min_sites
        greeted: set[int] = set()
        arrived: set[int] = set()
        hello = Parcel({}, {"base_sha256": self._base_sha256}, {})
        while True:
            new = [node for node in self._transport.nodes() if node not in greeted]
            left = deadline - time.monotonic()
            if new and left > 0:
                greeted.update(new)
                for reply in self._transport.ask(HELLO, dict.fromkeys(new, hello), left):
                    arrived.add(reply.node)
                    self._greet(reply)
            elif len(arrived) >= needed:
                return
            elif left <= 0:
                came = ", ".join(self._roster.name(node) for node in sorted(arrived)) or "none"
                raise NotEnoughSitesError(
                    f"the plan needs {needed} sites; within {self._start_timeout:g} s came "
                    f"{len(arrived)}: {came}. Start the other sites, or lower "
                    "federation.min_sites."
                )
            else:
                time.sleep(POLL_SECONDS)

    def _greet(self, reply: Reply) -> None:
        self._roster.learn(reply)
        config = {} if reply.parcel is None else reply.parcel.config
        if config.get("holds_base") is True:
            self._roster.holders.add(reply.node)
        trouble = f", but says {clean_code(reply.error)}" if reply.error else ""
        self._say(f"site {self._roster.name(reply.node)} arrived{trouble}")

    def _round(self, number: int) -> None:
        started = time.monotonic()
        state, federation = self._folder.state, self._plan.federation
        expected = Expected(
            self._plan.sha256, number, self._layout, federation.weighting, self._weights
        )

        private = self._plan.privacy.mode != "off"

        def judge(answers: Answers, node: int, parcel: Parcel) -> str:
            update = unpack_update(parcel)
            self._roster.check_author(node, update.site)
            check_update(update, expected)
            answers.updates.append(update)
            return "trained" if private else f"trained in {update.seconds:.1f} s"

        answers = self._ask(TRAIN, number, state.shared, judge)
        good, outliers = screen_norms(answers.updates, federation.max_update_norm)
        answers.rejected += outliers
        seconds = time.monotonic() - started
        record = round_record(number, good, answers, seconds)
        if len(good) < federation.min_sites:
            self._folder.append(record | {"status": "failed"})
            raise self._failure(f"round {number}", len(good), answers)
        shared = state.shared + self._aggregator.step(number, good, self._layout)
        if not np.isfinite(shared).all():
            self._folder.append(record | {"status": "failed"})
            raise RoundFailedError(f"round {number} failed: the aggregate is not finite")
        record["encoder_sha256"] = array_sha256(shared)
        best = better(state.best, number, good)
        self._folder.commit(State(number, shared, self._aggregator.state(), best), record)
        self._weights = {update.site: update.weight for update in good} | self._weights
        if (warning := heavy_site(good)) is not None:
            self._say(warning)
        self._say(progress_line(record, federation.rounds))

    def _finish(self) -> None:
        """Send the chosen encoder once more, so that every site fits and keeps its heads."""
        state, needed = self._folder.state, self._plan.federation.min_sites
        rounds = self._plan.federation.rounds
        final = state.shared
        if self._plan.evaluation.encoder == "best":
            final = self._folder.best_encoder()

        def judge(answers: Answers, node: int, parcel: Parcel) -> str:
            answers.metrics[self._roster.name(node)] = unpack_metrics(parcel.metrics)
            return "has its final heads"

        answers = self._ask(FINISH, rounds, final, judge)
        if len(answers.metrics) < needed:
            raise self._failure("the finish", len(answers.metrics), answers)
        sites = {site: answers.metrics[site] for site in sorted(answers.metrics)}
        self._folder.complete({"sites": sites, **answers.record()})
        self._say(f"completed {rounds} rounds; encoder {array_sha256(final)[:12]}")

    def _ask(
        self,
        action: str,
        number: int,
        shared: Flat,
        judge: Judge,
    ) -> Answers:
        """Send `shared` to every connected site and take in the answers.

        What travels is shared - base in the plan's wire format, and the base itself (float32)
        only to a site that does not hold it. A site that lost it says so and is sent it within
        the same round. With bf16 the sites start from base + bf16(shared - base); the master
        stays float32, so rounding in transit does not add up over the rounds.
        """
        plan, answers = self._plan, Answers()
        light, full = self._parcels(number, shared)
        nodes = self._connected()
        deadline = time.monotonic() + plan.federation.round_timeout
        answered: set[int] = set()
        sendings = {node: light if node in self._roster.holders else full for node in nodes}
        while sendings:
            answers.bytes_down += sum(parcel.bytes for parcel in sendings.values())
            again: dict[int, Parcel] = {}
            left = max(deadline - time.monotonic(), 0.1)
            for reply in self._transport.ask(action, sendings, left):
                if reply.error == BASE_MISSING and sendings[reply.node] is light:
                    again[reply.node] = full
                    continue
                answered.add(reply.node)
                self._take(answers, reply, judge)
            sendings = again
        silent = self._roster.absent(nodes) + [n for n in nodes if n not in answered]
        answers.missing = sorted(self._roster.name(node) for node in silent)
        return answers

    def _take(self, answers: Answers, reply: Reply, judge: Judge) -> None:
        self._roster.learn(reply)
        name = self._roster.name(reply.node)
        if reply.parcel is None or reply.error:
            code = clean_code(reply.error)
            answers.failed[name] = code
            fits = None if reply.parcel is None else reply.parcel.config.get("fits")
            if type(fits) is int and 0 <= fits < MOST_STEPS:
                answers.fits[name] = fits
            more = f": {answers.fits[name]} more steps would fit" if name in answers.fits else ""
            self._say(f"  {name}: {code}{more}")
            return
        self._roster.holders.add(reply.node)
        try:
            answers.bytes_up += reply.parcel.bytes
            words = judge(answers, reply.node, reply.parcel)
        except UpdateRejectedError as error:
            code, detail = error.code, error.detail[:DETAIL]
        except Exception as error:  # one site's answer, however odd, must not end the run
            code, detail = "schema", f"{type(error).__name__}: {error}"[:DETAIL]
        else:
            self._say(f"  {name}: {words}")
            return
        answers.rejected.append(UpdateRejectedError(name, code, detail))
        self._say(f"  {name}: rejected, {code}: {detail}")

    def _parcels(self, number: int, shared: Flat) -> tuple[Parcel, Parcel]:
        """The broadcast without and with the base."""
        base, wire = self._folder.base, self._plan.federation.wire
        plan_json, delta = self._plan.to_json(), shared - base
        light = pack_broadcast(Broadcast(plan_json, number, self._base_sha256, delta), wire)
        return light, Parcel({**light.arrays, "base": base}, light.config, light.metrics)

    def _connected(self) -> list[int]:
        """The connected nodes, waiting a bounded time for at least min_sites."""
        deadline = time.monotonic() + self._start_timeout
        needed = self._plan.federation.min_sites
        while len(nodes := self._transport.nodes()) < needed:
            if time.monotonic() > deadline:
                raise NotEnoughSitesError(
                    f"{len(nodes)} sites are connected, the plan needs {needed}; waited "
                    f"{self._start_timeout:g} s. Bring the others back, then resume."
                )
            time.sleep(POLL_SECONDS)
        return sorted(nodes)

    def _failure(self, what: str, good: int, answers: Answers) -> RoundFailedError | RefusedError:
        federation = self._plan.federation
        text = (
            f"{what} failed: {good} good answers, the plan needs {federation.min_sites}. "
            f"{answers.troubles(federation.round_timeout)}. "
            "Each site's own log (reports/site.log) has the details; mend the cause, then resume."
        )
        return RefusedError(text) if answers.refused() else RoundFailedError(text)
