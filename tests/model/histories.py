"""The state machine that generates histories, and the invariants that each of them must satisfy at the end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from unittest import mock

from botocore.exceptions import ClientError
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.model.moto_table import all_rows
from tests.model.reference import NEVER, JobView, Version, WaitCase, deviation, expected_change
from tests.model.world import UNINTERRUPTED, Actor, Deviation, Fate, Pace, World, is_server_error, uuid7
from vigil_core.domain.access import Access, Scope
from vigil_core.domain.errors import JobNotFound, ValidationFailed
from vigil_core.domain.exact_json import dumps
from vigil_core.domain.jobs.job import Job, JobError, NewJob, Report
from vigil_core.domain.waits import wait as waits
from vigil_core.services.background import matcher as match
from vigil_core.services.background import sweeper as sweep
from vigil_core.services.jobs import submit as submit_job
from vigil_core.services.jobs import transitions as change_job
from vigil_core.services.waits import requests as waits_api
from vigil_core.services.waits.view import wait_answer
from vigil_core.store import keys
from vigil_core.store.jobs import jobs as job_store
from vigil_core.store.table import row_from_image
from vigil_core.store.waits import wait_rows

JobKey = tuple[str, str]

NAMESPACES = ["red", "blue"]
START = World.START
JOB_IDS = [uuid7(START, n) for n in range(0xA0, 0xA3)]
"""The same ids in both namespaces: an id has no meaning across namespaces."""
CHOSEN_IDS = JOB_IDS[:1]
"""Ids that clients choose, and may wait for before the job exists; Vigil chooses the others."""

REPORTS: list[dict[str, Any]] = [
    {"fields": {"k": "a"}}, {"fields": {"k": "b"}}, {"fields": {"k": None}}, {"fields": {"k": 7}},
    {"milestones": ["m1"]}, {"milestones": ["m2"]}, {"milestones": ["m1"], "fields": {"k": "a"}},
    {"stage": "boot"}, {"stage": "setup"}, {"stage": "boot", "fields": {"k": "a", "list": ["x", 1], "map": {"y": 2}}},
]  # fmt: skip
CONDITIONS: list[Any] = [
    None, None, {}, {"k": "a"}, {"k": "a"}, {"k": "a"}, {"k": "b"}, {"k": "b"}, {"k": 7}, {"job_stage": "boot"},
    {"milestone": "m1"}, {"status": "running"}, {"job_stage": "boot"}, {"job_stage": "complete"},
    {"job_stage": "incomplete"}, {"milestone": "m1"}, {"milestones": ["m1", "m2"]}, {"k": "a", "milestone": "m1"},
    {"status": "running"}, {"job_health": "failed"}, {"attempt": 2}, {"job_stage": "boot", "k": "b"},
    {"job_stage": "warp"},
]  # fmt: skip
GET_FIELDS = [None, {"k": None}, {"list": None, "map": None, "status": None, "missing": None}, {"result": None}]

FAULTS: list[Fate] = ["is throttled", "meets a transaction", "is sent twice"]
PRIOR_HISTORIES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "pending": [("create", {})],
    "running": [("create", {}), ("start", {})],
    "k is a": [("create", {"fields": {"k": "a"}})],
    "k was a": [("create", {"fields": {"k": "a"}}), ("report", {"fields": {"k": "b"}})],
    "failed": [("create", {}), ("start", {}), ("fail", {})],
    "failed once": [("create", {"fields": {"k": "a"}}), ("cancel", {}), ("retry", {})],
}

PACES = [
    *[UNINTERRUPTED] * 20,
    *[Pace(moves=moves, then=then) for moves in range(7) for then in (None, None, None, "dies")],
    *[Pace(calls=calls, then=then) for calls in range(1, 13) for then in (None, "dies")],
    *[Pace(moves=moves, then=then) for moves in range(3) for then in FAULTS],
]
PACE = st.sampled_from(PACES)
MATCHER_PACES = st.sampled_from([*[None] * 40, *PACES])
"""How far a matcher gets with a change that it receives at once; None when it receives the change later."""
NAMESPACE = st.sampled_from([*NAMESPACES[:1] * 4, *NAMESPACES])
JOB = st.sampled_from([0, 0, 1, 1, 2])
ANY_INDEX = st.sampled_from(range(6))
"""Draws use lists only: Hypothesis prefers numbers that occur in the code, so an edit would change every history."""
WAIT = st.fixed_dictionaries(
    {
        "on": st.lists(st.tuples(JOB, st.sampled_from(CONDITIONS)), min_size=1, max_size=5).map(dict),
        "mode": st.sampled_from(["all", "any", {"at_least": 2}]),
        "fail_fast": st.booleans(),
        "allow_missing": st.booleans(),
        "get_fields": st.sampled_from(GET_FIELDS),
        "expires_in": st.sampled_from([86_400, 86_400, 100, 5]),
        "progress": st.booleans(),
    }
)


def _admin(namespace: str, key_id: str) -> Access:
    """Return the access of a key that may cancel all waits."""
    return Access(namespace=namespace, scopes=frozenset({Scope.ADMIN}), key_id=key_id)


@dataclass(eq=False)
class JobCall:
    """A request that changes a job, and the actor that the job's history names."""

    key: JobKey
    verb: str
    arguments: Mapping[str, Any]
    actor: Actor | None = None


@dataclass(eq=False)
class WaitCall:
    """A wait that a client posts, with retries until it has a response."""

    case: WaitCase
    actor: Actor | None = None
    last: Mapping[str, Any] | None = None
    """The newest response, to be posted back."""
    refused: bool = False


class Histories(RuleBasedStateMachine):
    """Jobs, reports, waits, cancels and expiries in two namespaces, with every fault between them."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = ExitStack()
        self.world: World
        self.job_calls: dict[str, JobCall] = {}
        self.wait_calls: list[WaitCall] = []
        self.broken = False

    # Start of a history

    @initialize(
        inline=st.sampled_from([4, 1, 2, 1]),
        page=st.sampled_from([2, 1, 1]),
        chunk=st.sampled_from([2, 1, 3]),
        narrow=st.sampled_from([1, 2, 200]),
        small_values=st.booleans(),
        past=st.lists(st.tuples(JOB, st.sampled_from(sorted(PRIOR_HISTORIES))), min_size=1, max_size=5).map(dict),
        posted=st.lists(st.tuples(WAIT, PACE), min_size=1, max_size=3),
    )
    def begin(
        self,
        inline: int,
        page: int,
        chunk: int,
        narrow: int,
        small_values: bool,
        past: dict[int, str],
        posted: list[tuple[dict[str, Any], Pace]],
    ) -> None:
        """Create jobs with undelivered stream records, and a client that waits for them."""
        for owner, name, value in [
            (waits, "MAX_INLINE_WAIT_JOBS", inline),
            (keys, "BLOCK_ENTRIES", chunk),
            (keys, "DUE_PARTITIONS", 1),
            (sweep, "DUE_PARTITIONS", 1),
            (match, "MAX_INLINE_WAITS", narrow),
            (wait_rows, "MAX_INLINE_VALUES_BYTES", 12 if small_values else 4096),
            (job_store, "MAX_STATE_LOG_LINES", 3),
        ]:
            self.limits.enter_context(mock.patch.object(owner, name, value))
        self.world = World(spec_page_entries=page)
        self.world.log("world", f"{inline} jobs inline, {page} a page, {chunk} a chunk, {narrow} waits matched at once")
        for job, name in past.items():
            for verb, said in PRIOR_HISTORIES[name]:
                self._send("red", job, verb, said)
        for told, pace in posted:
            self._wait("red", pace, **told)

    # Requests of clients

    @rule(ns=NAMESPACE, job=JOB, say=st.sampled_from(REPORTS), pace=PACE, heard=MATCHER_PACES)
    def report(self, ns: str, job: int, say: dict[str, Any], pace: Pace, heard: Pace | None) -> None:
        """Create, start or report a job, whichever its status allows."""
        newest = self._newest(ns, job)
        if newest is None or newest.deleted:
            self._send(ns, job, "create", {"fields": say.get("fields", {})}, pace)
        elif newest.status == "pending" and "stage" in say:
            self._send(ns, job, "start", {}, pace)
        else:
            self._send(ns, job, "report", say, pace)
        if heard is not None:
            self._run_matcher(ns, job, heard)

    @rule(
        ns=NAMESPACE,
        job=JOB,
        verb=st.sampled_from(["complete", "fail", "cancel", "retry", "delete"]),
        pace=PACE,
        heard=MATCHER_PACES,
    )
    def end(self, ns: str, job: int, verb: str, pace: Pace, heard: Pace | None) -> None:
        """End a job, or a job that is ending."""
        newest = self._newest(ns, job)
        if newest is None or newest.deleted:
            return
        if newest.status == "pending" and verb in ("complete", "fail"):
            verb = "start"
        elif newest.status in ("completed", "failed", "cancelled"):
            verb = "delete" if verb == "delete" or newest.status == "completed" else "retry"
        self._send(ns, job, verb, {}, pace)
        if heard is not None:
            self._run_matcher(ns, job, heard)

    @rule(
        job=JOB, unique=st.sampled_from([None, "u"]), mutex=st.sampled_from([None, "m"]), pace=PACE,
    )  # fmt: skip
    def create_with_hold(self, job: int, unique: str | None, mutex: str | None, pace: Pace) -> None:
        """Create a job with a unique key or a mutex."""
        if self._newest("red", job) is None:
            self._send("red", job, "create", {"unique_key": unique, "mutex_key": mutex}, pace)

    @rule(ns=NAMESPACE, told=WAIT, pace=PACE)
    def wait(self, ns: str, told: dict[str, Any], pace: Pace) -> None:
        """Register another wait."""
        self._wait(ns, pace, **told)

    @precondition(lambda self: self.wait_calls)
    @rule(which=ANY_INDEX, pace=PACE)
    def post_again(self, which: int, pace: Pace) -> None:
        """Post a response back unchanged, or repeat the request under its id when there was no response."""
        call = self.wait_calls[-1 - which % len(self.wait_calls)]
        if not call.refused and (call.actor is None or call.actor.ended is not None):
            self._post(call, pace)

    @precondition(lambda self: self.wait_calls)
    @rule(which=ANY_INDEX, pace=PACE)
    def cancel_wait(self, which: int, pace: Pace) -> None:
        """Cancel a wait."""
        case = self.wait_calls[-1 - which % len(self.wait_calls)].case

        def over(actor: Actor) -> None:
            assert actor.ended is not None
            case.cancels.append((actor.begun, actor.ended))
            self._no_server_error(actor)

        actor = self.world.begin(
            "client", f"cancel wait {case.wait_id}",
            lambda name: waits_api.cancel_wait(
                self.world.ctx, case.namespace, case.wait_id, access=_admin(case.namespace, name)
            ),
            over,
        )  # fmt: skip
        self.world.advance(actor, pace)

    # Progress of the work, and faults

    @precondition(lambda self: self.world.actors)
    @rule(which=ANY_INDEX, pace=PACE)
    def go_on(self, which: int, pace: Pace) -> None:
        """Let an interrupted actor continue, or fail."""
        self.world.advance(self.world.actors[which % len(self.world.actors)], pace)

    @precondition(lambda self: any(len(shard.records) > shard.done for shard in self.world.shards))
    @rule(shard=st.sampled_from([0, 1]), count=st.sampled_from([1, 1, 2, 3, 10]), pace=PACE)
    def deliver(self, shard: int, count: int, pace: Pace) -> None:
        """Deliver the next records of a shard to a matcher, even while another matcher still has them."""
        stream = self.world.shards[shard]
        if stream.done == len(stream.records):
            stream = self.world.shards[1 - shard]
        self.world.advance(self.world.match(stream, stream.done, count), pace)

    @precondition(lambda self: any(shard.done for shard in self.world.shards))
    @rule(
        shard=st.sampled_from([0, 1]), back=st.sampled_from([1, 2, 3, 4]), count=st.sampled_from([1, 1, 2]), pace=PACE
    )
    def deliver_again(self, shard: int, back: int, count: int, pace: Pace) -> None:
        """Deliver records again that were processed long ago."""
        stream = self.world.shards[shard]
        if not stream.done:
            stream = self.world.shards[1 - shard]
        first = max(0, stream.done - back)
        self.world.advance(self.world.match(stream, first, min(count, stream.done - first)), pace)

    @precondition(lambda self: any(group.messages for group in self.world.groups.values()))
    @rule(which=ANY_INDEX, patient=st.booleans(), pace=PACE)
    def page(self, which: int, patient: bool, pace: Pace) -> None:
        """Deliver a message to the fan-out function, even while it still processes the same message."""
        groups = [group for group in self.world.groups.values() if group.messages]
        self.world.advance(self.world.run_fan_out(groups[which % len(groups)], patient=patient), pace)

    @precondition(lambda self: self.world.wake_ups)
    @rule(which=ANY_INDEX, stays=st.booleans(), pace=PACE)
    def wake(self, which: int, stays: bool, pace: Pace) -> None:
        """Deliver a message to the sweeper, on time or not, and possibly again later."""
        wake_ups = self.world.wake_ups
        at = which % len(wake_ups)
        self.world.advance(self.world.run_sweeper_message(wake_ups[at] if stays else wake_ups.pop(at)), pace)

    @rule(seconds=st.sampled_from([6, 61, 101]), pace=PACE)
    def sweep(self, seconds: int, pace: Pace) -> None:
        """Advance the time, and sweep."""
        self.world.now += timedelta(seconds=seconds)
        self.world.log("world", f"{seconds} s pass")
        self.world.advance(self.world.sweep(), pace)

    @rule()
    def settle(self) -> None:
        """Let every actor finish: from here on the order is fixed."""
        self.world.run_until_idle()

    # End of a history

    def teardown(self) -> None:
        try:
            if not self.broken:
                self._check_end()
        finally:
            note(_Trace(self.world))
            self.world.stop()
            self.limits.close()

    def _check_end(self) -> None:
        self.world.run_until_nothing_is_due()
        self._check_jobs()
        self._check_locks()
        for call in self.wait_calls:
            try:
                self._check_wait(call)
            except Deviation as error:
                raise Deviation(f"wait {call.case.wait_id} in {call.case.namespace}: {error}") from error
        self._check_leftovers()

    def _check_jobs(self) -> None:
        """Require that every version exists once, that one request made it, and that no request took effect twice."""
        histories: dict[JobKey, list[Job]] = {}
        for _, job in self.world.versions:
            histories.setdefault((job.namespace, job.job_id), []).append(job)
        changed_by: Counter[str] = Counter()
        for key, versions in histories.items():
            before: JobView | None = None
            for number, job in enumerate(versions, start=1):
                _require(job.version == number, f"{key} has v{job.version} where v{number} was to come")
                by = job.log[-1].actor
                changed_by[by] += 1
                call = self.job_calls.get(by) or JobCall(key, "enforce", {})
                _require(call.key == key, f"{by} changed {key} instead of {call.key}")
                expected = expected_change(before, call.verb, call.arguments)
                before = JobView.of(job)
                _require(before == expected, f"{by} made {key} {before}, not {expected}")
            newest = self.world.observer.jobs.find(*key)
            unmarked = newest and replace(newest, has_waits=versions[-1].has_waits)
            _require(unmarked == versions[-1], f"{key} is {newest}, which nobody made it")
            if newest is not None and not newest.deleted:
                told = self.world.observer.jobs.history(newest)
                _require(told == [job.log[-1] for job in versions], f"the history of {key} is told as {told}")
        for name, call in self.job_calls.items():
            actor = call.actor
            assert actor is not None
            _require(changed_by[name] <= 1, f"{name} did twice what it was to do once")
            if actor.error is not None and not actor.had_fault:
                _require(not changed_by[name], f"{name} was refused, and did it all the same")
            if actor.answered and call.verb in ("start", "complete", "fail", "retry", "delete"):
                _require(changed_by[name] == 1, f"{name} was told it was done, and it was not")

    def _check_locks(self) -> None:
        """Require that two live jobs never had the same unique key or mutex."""
        live: dict[tuple[str, str, str], set[str]] = {}
        for _, job in self.world.versions:
            for kind, name in [("unique key", job.unique_key), ("mutex", job.mutex.key)]:
                if name is not None:
                    holders = live.setdefault((job.namespace, kind, name), set())
                    holders.difference_update([job.job_id]) if job.ended else holders.add(job.job_id)
                    _require(len(holders) <= 1, f"{holders} have the same {kind}")

    def _check_wait(self, call: WaitCall) -> None:
        case = call.case
        images = [image for image in self.world.images if image.wait.wait_id == case.wait_id]
        if not images:
            _require(call.last is None, "it was answered, and is not there")
            return
        case.unfinished |= case.registered == NEVER
        sealed = next((image.tick for image in images if image.wait.registration_complete), NEVER)
        case.registered = max(sealed, images[0].tick if case.registered == NEVER else case.registered)
        closed = [image for image in images if image.wait.ended]
        _require(len(closed) <= 1, f"it was changed after it was closed: {closed}")
        wait = images[-1].wait
        _require(wait.namespace == case.namespace, f"it is in {wait.namespace}")
        final = json.loads(dumps(wait_answer(self.world.observer, wait)))
        self._check_form(case, final)
        if closed:
            case.closed, case.closing = closed[0].tick, closed[0].writer_begun
            _require(
                wait.registration_complete or wait.status not in ("met", "unmet"),
                "it was closed by counting before it was sealed",
            )
            _require(wait.status != "expired" or closed[0].at >= wait.expires_at, "it expired too early")
        else:
            _require(wait.expires_at > self.world.now, "it should have expired")
        if call.last is not None and call.last["status"] != "waiting":
            _require(call.last == final, f"it once was answered with {call.last}, and now with {final}")
        versions = self._versions(case.namespace)
        wrong = deviation(case, final, versions, at_rest=self.world.idle_ticks)
        _require(wrong is None, f"{wrong}; its answer is {final}")

    def _check_form(self, case: WaitCase, final: Mapping[str, Any]) -> None:
        """Require one place for each job, and `wait_on` while the wait has jobs left."""
        waiting = final["status"] == "waiting"
        _require(("wait_on" in final) == waiting, f"the answer is {final}")
        places = [*final["waited_jobs"], *final["unmet_jobs"], *final.get("wait_on", {})]
        _require(len(places) == len(set(places)), f"a job is in two places of {final}")
        if waiting:
            _require(set(places) == set(case.body["wait_on"]), f"a job is missing from {final}")

    def _check_leftovers(self) -> None:
        """Require that no row causes further work, and that no row crossed into another namespace."""
        ended = {image.wait.wait_id for image in self.world.images if image.wait.ended and image.wait.is_inline}
        for row in map(row_from_image, all_rows()):
            _require("schema_version" in row, f"no schema_version in {row}")
            _require(row["pk"].split("#")[0] in (*NAMESPACES, "sweeper"), f"a row in no namespace: {row}")
            if not self.world.had_fault:  # A crash may leave some rows, until the job's next version or their TTL.
                _require(row["entity"] != "backlog", f"the fan-out function is done, and a backlog is left: {row}")
                left = row["entity"] == "entry" and row["sk"].split("#")[0] in ended
                _require(not left, f"an entry of a wait that has ended is left: {row}")

    # Helpers

    def _send(self, ns: str, job: int, verb: str, said: Mapping[str, Any], pace: Pace = UNINTERRUPTED) -> None:
        job_id = JOB_IDS[job]
        call = JobCall((ns, job_id), verb, said)
        ctx = self.world.ctx

        def work(name: str) -> object:
            self.job_calls[name] = call
            match verb:
                case "create":
                    new = NewJob(job_id=job_id, job_type="build", has_waits=job_id in CHOSEN_IDS, **said)
                    return submit_job.submit(ctx, ns, new, actor=name)
                case "start":
                    return change_job.start(ctx, ns, job_id, actor=name)
                case "report":
                    return change_job.report(ctx, ns, job_id, Report(**said), actor=name)
                case "complete":
                    return change_job.complete(ctx, ns, job_id, actor=name, result={"by": name})
                case "fail":
                    error = JobError(code="BROKEN", message="it broke")
                    return change_job.fail(ctx, ns, job_id, error, actor=name)
                case "cancel":
                    return change_job.cancel(ctx, ns, job_id, actor=name)
                case "retry":
                    return change_job.retry(ctx, ns, job_id, actor=name)
                case "delete":
                    change_job.delete(ctx, ns, job_id, actor=name)
            return None

        about = f" {dict(said)}" if said else ""
        call.actor = self.world.begin("client", f"{verb} {ns} {job_id}{about}", work, self._no_server_error)
        self.world.advance(call.actor, pace)

    def _run_matcher(self, ns: str, job: int, pace: Pace) -> None:
        """Deliver all records of a job to a matcher at once."""
        shard = self.world.shard_of(keys.job(ns, JOB_IDS[job]).pk)
        if shard.done < len(shard.records):
            self.world.advance(self.world.match(shard, shard.done, 10), pace)

    def _wait(
        self,
        ns: str,
        pace: Pace,
        *,
        on: dict[int, Any],
        mode: Any,
        fail_fast: bool,
        allow_missing: bool,
        get_fields: Any,
        expires_in: int,
        progress: bool,
    ) -> None:
        if not allow_missing:
            # Other requests are refused. Other tests cover that; here it makes dull histories.
            on = {n: asked for n, asked in on.items() if self._newest(ns, n) and asked != {"job_stage": "warp"}}
        # No client can know an id before Vigil has chosen it.
        on = {n: asked for n, asked in on.items() if JOB_IDS[n] in CHOSEN_IDS or self._newest(ns, n)}
        if not on:
            return
        options: dict[str, Any] = {"mode": "any" if isinstance(mode, dict) and len(on) < 2 else mode}
        options |= {"expires_in": expires_in, "return_on": "progress" if progress else "done"}
        options |= {"fail_fast": None} if fail_fast else {}
        options |= {"allow_missing": None} if allow_missing else {}
        options |= {"get_fields": get_fields} if get_fields else {}
        body = {"wait_on": {JOB_IDS[n]: asked for n, asked in on.items()}, "wait_options": options}
        call = WaitCall(WaitCase(ns, self.world.new_id(), body, called=self.world.tick))
        self.wait_calls.append(call)
        self._post(call, pace)

    def _post(self, call: WaitCall, pace: Pace) -> None:
        case, body = call.case, call.last or call.case.body

        def over(actor: Actor) -> None:
            self._no_server_error(actor)
            if isinstance(actor.error, JobNotFound | ValidationFailed):
                call.refused = True
                self._check_refusal(case, actor.error)
            elif actor.answered:
                assert actor.ended is not None
                call.last = json.loads(dumps(actor.value))
                case.registered = min(case.registered, actor.ended)
                self._check_form(case, call.last)
                if call.last["wait_id"] != case.wait_id:
                    raise Deviation(f"wait {case.wait_id} became {call.last['wait_id']}")
            else:
                case.unfinished |= case.registered == NEVER

        what = f"wait again for {case.wait_id}" if call.actor else f"wait in {case.namespace} as {case.wait_id} {body}"
        call.actor = self.world.begin(
            "client", what,
            lambda name: waits_api.post_wait(
                self.world.ctx, case.namespace, body, actor=name, poll_until=self.world.now, reserved_id=case.wait_id
            ),
            over,
        )  # fmt: skip
        self.world.advance(call.actor, pace)

    def _check_refusal(self, case: WaitCase, error: JobNotFound | ValidationFailed) -> None:
        versions = self._versions(case.namespace)
        if isinstance(error, ValidationFailed):
            _require({"job_stage": "warp"} in case.body["wait_on"].values(), f"refused: {error}")
            return
        for job_id in error.job_ids:
            seen = versions[job_id]
            was_missing = not seen or seen[0].tick > case.called or seen[-1].deleted
            _require(was_missing, f"{job_id} was said to be unknown")

    def _no_server_error(self, actor: Actor) -> None:
        if actor.error is not None and (is_server_error(actor.error) or (not actor.had_fault and _is_aws(actor.error))):
            raise Deviation(f"{actor.name} fails: {actor.error!r}") from actor.error

    def _newest(self, ns: str, job: int) -> Job | None:
        of_ns = (version for _, version in reversed(self.world.versions) if version.namespace == ns)
        return next((version for version in of_ns if version.job_id == JOB_IDS[job]), None)

    def _versions(self, ns: str) -> dict[str, list[Version]]:
        versions: dict[str, list[Version]] = {job_id: [] for job_id in JOB_IDS}
        for tick, job in self.world.versions:
            if job.namespace == ns:
                versions[job.job_id].append(Version.of(tick, job))
        return versions


class _Trace:
    """Return the history, as Hypothesis prints it below the smallest failing one."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        names = {job_id: f"job{n}" for n, job_id in enumerate(JOB_IDS)}
        for image in self._world.images:
            names.setdefault(image.wait.wait_id, f"wait{len(names) - len(JOB_IDS)}")
        text = "\n".join(f"{who:>12} {what}" for who, what in self._world.trace)
        for long, short in names.items():
            text = text.replace(long, short)
        printer.text("The story:\n" + text)


def _require(true: bool, otherwise: str) -> None:
    if not true:
        raise Deviation(otherwise)


def _is_aws(error: Exception) -> bool:
    return isinstance(error, ClientError)
