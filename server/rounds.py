"""The rounds of a federation: ask, check, aggregate, save, and stop honestly.

Our loop replaces Flower's `Strategy.start`, which cannot resume, waits for ever, and ends
"normally" when every site failed. It knows Flower only through the strategies' arithmetic.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from common.checkpoint import array_sha256
from common.errors import (
    RefusedError,
    RoundFailedError,
    StepRejectedError,
    UpdateRejectedError,
    escaped,
)
from common.parameters import Flat, Layout
from common.plan import Plan
from common.update import Broadcast, Update
from common.wire import Parcel, check_parcel, pack_broadcast, unpack_metrics, unpack_update
from server.arrivals import Needed, gather, wait_for_nodes
from server.firewall import Expected, check_update, norm_limit, screen_norms, update_norm
from server.records import (
    Answers,
    accepted_norms,
    better,
    first_weights,
    heavy_site,
    progress_line,
    round_record,
)
from server.roster import Roster, clean_code
from server.run_folder import ROUNDS, RunFolder, State
from server.strategy import Aggregator
from server.transport import BASE_MISSING, FINISH, TRAIN, Reply, Transport

# Takes one site's good answer in and says in words what it was; whatever it raises is that
# site's rejection, so the answer is taken in last.
Judge = Callable[[Answers, int, Parcel], str]

MOST_STEPS = 10**9  # a site that says that more would fit is not believed
DETAIL = 200  # characters of a rejection that are kept: a site may send any text
LONGEST_STEP = 100.0  # times the norm of the parameters that the run began with


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
        roster: Roster | None = None,
    ) -> None:
        """say: takes each line of progress. start_timeout: seconds to wait for min_sites.

        roster: what is known of the nodes' names already; None: what the run folder knows.
        """
        federation = plan.federation
        self._plan, self._layout, self._folder = plan, layout, folder
        self._transport, self._say = transport, say
        self._needed = Needed(federation.min_sites, start_timeout)
        self._aggregator = Aggregator(federation.strategy, federation.max_share)
        self._aggregator.restore(folder.state.strategy)
        self._roster = Roster(earlier=folder.state.names) if roster is None else roster
        self._base_sha256 = array_sha256(folder.base)
        # All of these follow from the run folder: a resumed server judges as the first one did.
        start = folder.base[: layout.moving]
        self._max_norm = norm_limit(start, federation.max_update_norm)
        self._longest_step = LONGEST_STEP * update_norm(start)
        self._weights = first_weights(folder.path / ROUNDS)
        self._norms = accepted_norms(folder.path / ROUNDS)

    def run(self) -> None:
        """Do every round that is not finished yet, then let the sites fit their final heads.

        Raises NotEnoughSitesError when fewer than min_sites come, RoundFailedError when a
        round has fewer than min_sites good updates, or no round could change the model. The
        caller records the failure.
        """
        rounds = self._plan.federation.rounds
        if self._folder.state.round:
            self._say(f"resumed after round {self._folder.state.round}/{rounds}")
        gather(self._transport, self._roster, self._needed, self._base_sha256, self._say)
        while self._folder.state.round < rounds:
            self._round(self._folder.state.round + 1)
        if not self._norms:
            raise RoundFailedError(
                f"none of the {rounds} rounds could be applied: rounds.jsonl has each one's reason "
                "(not_applied). Lower federation.strategy.server_learning_rate if it is set."
            )
        self._finish()

    def _round(self, number: int) -> None:
        started = time.monotonic()
        state, federation = self._folder.state, self._plan.federation
        expected = Expected(
            self._plan.sha256,
            number,
            self._layout,
            federation.weighting,
            self._weights,
            self._max_norm,
        )
        private = self._plan.privacy.mode != "off"

        def judge(answers: Answers, node: int, parcel: Parcel) -> str:
            update = unpack_update(parcel, self._layout.moving)
            self._roster.check_author(node, update.site)
            check_update(update, expected)
            answers.updates.append(update)
            return "trained" if private else f"trained in {update.seconds:.1f} s"

        answers = self._ask(TRAIN, number, state.shared, judge)
        good, outliers = screen_norms(answers.updates, federation.max_update_norm, self._norms)
        answers.rejected += outliers
        record = round_record(number, good, answers, time.monotonic() - started)
        if len(good) < federation.min_sites:
            self._folder.append(record | {"status": "failed"})
            raise self._failure(f"round {number}", len(good), answers)
        self._conclude(number, good, record)

    def _conclude(self, number: int, good: Sequence[Update], record: dict[str, Any]) -> None:
        """Take the good updates in, or leave the model as it was and say why; save the round."""
        state, federation = self._folder.state, self._plan.federation
        shared, best = state.shared, state.best
        try:
            shared = self._aggregator.advance(
                number, good, self._layout, shared, self._longest_step
            )
        except StepRejectedError as error:
            record["not_applied"] = {"code": error.code, "detail": error.detail}
            self._say(f"  round {number} changes nothing, {error}")
        else:
            best = better(best, number, good)
            self._norms += [update_norm(update.delta) for update in good]
        record["encoder_sha256"] = array_sha256(shared)
        self._roster.confirm()
        moments, names = self._aggregator.state(), self._roster.bound
        self._folder.commit(State(number, shared, moments, best, names), record)
        self._weights = {update.site: update.weight for update in good} | self._weights
        if (warning := heavy_site(good, federation.max_share)) is not None:
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
            self._roster.check_author(node, parcel.config.get("site"))
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
        the same round. A node whose name is disputed is not asked: its budget would be spent for
        nothing. An answer that nobody asked for, or a second one, is left out. With bf16 the sites
        start from base + bf16(shared - base); the master
        stays float32, so rounding in transit does not add up over the rounds.
        """
        plan, answers = self._plan, Answers()
        light, full = self._parcels(number, shared)
        connected = wait_for_nodes(self._transport, self._needed)
        self._roster.meet(connected)
        nodes = list(connected)
        for node in connected:
            if (disputed := self._roster.trouble(node)) is not None:
                nodes.remove(node)
                answers.rejected.append(
                    UpdateRejectedError(self._roster.name(node), "name", disputed)
                )
        deadline = time.monotonic() + plan.federation.round_timeout
        answered: set[int] = set()
        sendings = {node: light if node in self._roster.holders else full for node in nodes}
        while sendings:
            answers.bytes_down += sum(parcel.bytes for parcel in sendings.values())
            again: dict[int, Parcel] = {}
            left = max(deadline - time.monotonic(), 0.1)
            for reply in self._transport.ask(action, sendings, left):
                if reply.node not in sendings.keys() - answered - again.keys():
                    answers.unasked.add(self._roster.name(reply.node))
                elif reply.error == BASE_MISSING and sendings[reply.node] is light:
                    again[reply.node] = full
                else:
                    answered.add(reply.node)
                    self._take(answers, reply, judge)
            sendings = again
        silent = self._roster.absent(connected) + [n for n in nodes if n not in answered]
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
            check_parcel(reply.parcel)
            answers.bytes_up += reply.parcel.bytes
            words = judge(answers, reply.node, reply.parcel)
        except UpdateRejectedError as error:
            code, detail = error.code, error.detail
        except Exception as error:  # one site's answer, however odd, must not end the run
            code, detail = "schema", f"{type(error).__name__}: {error}"
        else:
            self._say(f"  {name}: {words}")
            return
        detail = escaped(detail[:DETAIL])[:DETAIL]
        answers.rejected.append(UpdateRejectedError(name, code, detail))
        self._say(f"  {name}: rejected, {code}: {detail}")

    def _parcels(self, number: int, shared: Flat) -> tuple[Parcel, Parcel]:
        """The broadcast without and with the base."""
        base, wire = self._folder.base, self._plan.federation.wire
        plan_json, delta = self._plan.to_json(), (shared - base)[: self._layout.moving]
        light = pack_broadcast(Broadcast(plan_json, number, self._base_sha256, delta), wire)
        return light, Parcel({**light.arrays, "base": base}, light.config, light.metrics)

    def _failure(self, what: str, good: int, answers: Answers) -> RoundFailedError | RefusedError:
        federation = self._plan.federation
        text = (
            f"{what} failed: {good} good answers, the plan needs {federation.min_sites}. "
            f"{answers.troubles(federation.round_timeout)}. "
            "Each site's own log (reports/site.log) has the details; mend the cause, then resume."
        )
        return RefusedError(text) if answers.refused() else RoundFailedError(text)
