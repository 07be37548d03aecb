"""What becomes of a run, worked out the plain way: one job after another, from what the outer world did, in its order.

Where the order in which Vigil hears of things decides, `exact` is false, and `unjustified` says what is allowed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Event: TypeAlias = tuple[str, ...]
"""("claimed", job), ("ran", job, "asked" | "") for an attempt's end, ("due", job), ("cancelled", job) by hand, at
once, ("forced", job) when one that ran did not end as it was asked to, ("stop", why), ("decided", job, action),
("retried", job or "")."""
PREDICATES: Mapping[str, Callable[[Sequence[str]], bool]] = {
    "all_success": lambda ends: set(ends) <= {"success"},
    "all_done": bool,  # It waits for them all: there are some.
    "all_failed": lambda ends: set(ends) <= {"failed", "cancelled"},
    "one_success": lambda ends: "success" in ends,
    "one_failed": lambda ends: "failed" in ends or "cancelled" in ends,
    "one_done": lambda ends: bool(set(ends) - {"skipped"}),
    "none_failed": lambda ends: not set(ends) & {"failed", "cancelled"},
    "none_failed_min_one_success": lambda ends: not set(ends) & {"failed", "cancelled"} and "success" in ends,
    "none_skipped": lambda ends: "skipped" not in ends,
}
BAD = {"failed", "cancelled"}


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A job, and how its attempts go: a number is a result, None an error; whatever is not planned goes well."""

    name: str
    after: Sequence[str] = ()
    rule: str = "all_success"
    condition: Literal["true", "false", "broken"] | tuple[str, int] | None = None
    attempts: int = 1
    fallback: int | None = None
    join: bool = False
    race: bool = False
    delayed: bool = False
    outcomes: Sequence[int | None] = ()

    def outcome(self, number: int) -> int | None:
        """What comes of its nth attempt, from 0 on."""
        return self.outcomes[number] if number < len(self.outcomes) else number


def verdict(job: Planned, ends: Mapping[str, str]) -> bool | None:
    """Whether a job may start (True), never will (False), or cannot be told yet (None)."""
    if not job.after or job.rule == "always":
        return True
    told = [ends.get(name) for name in job.after]
    if None in told and job.rule == "all_done":
        return None
    ways = {PREDICATES[job.rule]([end or rest for end in told]) for rest in ("success", "failed", "skipped")}
    return ways.pop() if len(ways) == 1 else None


@dataclass
class Reference:
    """`ambiguous` says of jobs that may be skipped for two reasons whether that was through a failure."""

    policy: str
    jobs: Mapping[str, Planned]
    ambiguous: Mapping[str, bool] = field(default_factory=dict)
    status: dict[str, str] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)
    result: dict[str, int | None] = field(default_factory=dict)
    attempt: Counter[str] = field(default_factory=Counter)
    ran: Counter[str] = field(default_factory=Counter)
    more: dict[str, int] = field(default_factory=dict)
    released: set[str] = field(default_factory=set)
    claimed: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    due: set[str] = field(default_factory=set)
    judged: dict[str, str] = field(default_factory=dict)
    first_failed: str | None = None
    stops: list[str] = field(default_factory=list)
    exact: bool = True

    def replay(self, events: Sequence[Event], *, orderly: bool) -> None:
        """`orderly`: whether Vigil had heard of all that happened before each event."""
        self.attempt.update(self.jobs.keys())
        self.more = {name: job.attempts for name, job in self.jobs.items()}
        self._settle(events)
        for number, event in enumerate(events):
            later = events[number + 1 :]
            match event:
                case ("claimed", name):
                    self.claimed.add(name)
                case ("due", name):
                    self.due.add(name)
                    self._settle(later)
                case ("ran", name, asked):
                    self._ran(name, asked, later)
                case ("cancelled" | "forced", name):
                    self._end(name, "cancelled", "cancelled", later)
                case ("stop", why):
                    self.stops.append(why)
                case ("decided", name, "retry"):
                    self._again([name], later)
                case ("decided", name, "skip"):
                    self.ends[name], self.result[name] = "success", None
                    self._again([], later)
                case ("decided", name, "abort"):
                    self.ends[name] = "failed"
                    self.stops.append("abort")
                case ("retried", start):
                    self._retry(start, later)
            self.exact &= orderly or not self.stops
            # A join that completes by itself does so once its run is not paused, nor as many run as may.
            self.exact &= not (self.stops and any(job.join for job in self.jobs.values()))
        self._close()

    @property
    def outcome(self) -> tuple[str, str | None]:
        """How the run ends, and with which error."""
        if "cancel" in self.stops:
            return "cancelled", None
        codes = {"deadline": "TIMED_OUT", "abort": "ABORTED"}
        code = next((codes[why] for why in codes if why in self.stops), None)
        code = code or ("JOB_FAILED" if any(map(self.failed, self.jobs)) else None)
        return ("failed" if code else "completed"), code

    def _close(self) -> None:
        for name in self.jobs.keys() - self.status.keys():
            assert self.stops or not self.exact, f"{name} is still open"
            self.status[name] = self.ends[name] = "cancelled"
        self.ends |= {name: "failed" for name in self.jobs if name not in self.ends}

    def failed(self, name: str) -> bool:
        """Whether a job has failed the run: not if it lost a race, or runs in one that was or may yet be won."""
        races = [job for job in self.jobs.values() if job.race and name in job.after]
        bad = self.status.get(name) in BAD and self.ends.get(name) in (*BAD, None) and name not in self.lost
        ends = {**dict.fromkeys(self.status, "failed"), **self.ends}
        return bad and not any(verdict(join, ends) is not False for join in races)

    def _ran(self, name: str, asked: str, later: Sequence[Event]) -> None:
        assert name in self.released or not self.exact, f"{name} ran too early"
        self.claimed.discard(name)
        result = self.jobs[name].outcome(self.ran[name])
        self.ran[name] += 1
        fallback = self.jobs[name].fallback
        if result is not None:
            self._end(name, "completed", "success", later, result)
        elif asked:
            self._end(name, "cancelled", "cancelled", later)
        elif self.attempt[name] < self.more[name]:
            self.attempt[name] += 1
        elif fallback is not None:
            self._end(name, "completed", "success", later, fallback)
        else:
            self._end(name, "failed", "failed", later)

    def _end(self, name: str, status: str, end: str, later: Sequence[Event], result: int | None = None) -> None:
        self.status[name], self.result[name] = status, result
        self.ends[name] = "skipped" if name in self.lost and end != "success" else end
        self._look_at([name])
        self._settle(later)

    def _look_at(self, names: Iterable[str]) -> None:
        for name in names:
            if not self.stops and self.failed(name):
                self.first_failed = self.first_failed or name
                if self.policy == "fail_fast":
                    self.stops.append("failure")
                elif self.policy == "manual":
                    self.ends.pop(name, None)  # Undecided: it has no end yet.

    def _settle(self, later: Sequence[Event]) -> None:
        by_hand = {event[1] for event in later if event[0] == "cancelled"}
        changed = not self.stops
        while changed and not self.stops:
            changed = False
            for name, job in self.jobs.items():
                held = verdict(job, self.ends)
                waits = name not in self.status and name not in self.released
                waits &= name not in by_hand or (held is True and not job.join and job.condition is None)
                if waits and (not job.delayed or name in self.due) and held is not None:
                    changed = True
                    self._judge(job, held, later)

    def _judge(self, job: Planned, held: bool, later: Sequence[Event]) -> None:
        name, told = job.name, [self.ends.get(other) for other in job.after]
        self.judged[name] = "none" if not job.after else "satisfied" if held else "failed"
        passed = self.result.get(job.condition[0]) == job.condition[1] if isinstance(job.condition, tuple) else True
        if not held:
            plain = verdict(job, {other: end for other, end in self.ends.items() if end not in BAD}) is False
            through = self.ambiguous.get(name, True) if plain else True
            self.status[name] = "skipped"
            self.ends[name] = "failed" if through and BAD & set(told) else "skipped"
            self._judge_racers(job)
        elif job.condition == "broken":
            self.exact &= self.policy != "fail_fast"
            self._end(name, "failed", "failed", later)
        elif job.condition == "false" or not passed:
            self.status[name] = self.ends[name] = "skipped"
        else:
            self.released.add(name)
            if job.join:
                self._end(name, "completed", "success", later)
        if job.race and held and self.status.get(name) != "skipped":
            losers = [other for other in job.after if other not in self.ends]
            self.exact &= not any(self.jobs[other].join or self.jobs[other].condition for other in losers)
            self.lost |= set(losers)
            for other in losers:
                if other not in self.claimed:
                    self.status.setdefault(other, "cancelled")
                    self.ends[other] = "skipped"

    def _judge_racers(self, job: Planned) -> None:
        if job.race and not self.stops:
            self._look_at(job.after)
            self.exact &= not self.stops and self.policy != "manual"

    def _retry(self, start: str, later: Sequence[Event]) -> None:
        self._close()
        skipped = {name for name in self.jobs if self.status[name] == "skipped" and self.ends[name] == "failed"}
        again = self._after(skipped | set(filter(self.failed, self.jobs)), {"success"})
        self.stops = []
        self._again(again | (self._after({start}, set()) if start else set()), later)

    def _after(self, names: set[str], without: set[str]) -> set[str]:
        found = set(names)
        while more := {
            name
            for name, job in self.jobs.items()
            if name not in found and found & set(job.after) and self.ends[name] not in without
        }:
            found |= more
        return found

    def _again(self, names: Iterable[str], later: Sequence[Event]) -> None:
        for name in names:
            self.attempt[name] += 1
            self.more[name] = max(self.more[name], self.attempt[name])
            for kept in (self.status, self.ends, self.result, self.judged):
                kept.pop(name, None)
            for group in (self.released, self.claimed, self.lost):
                group.discard(name)
            self.due.add(name)
        self.first_failed = next((name for name in self.jobs if self.failed(name)), None)
        self._settle(later)


def unjustified(
    jobs: Mapping[str, Planned],
    seen: Mapping[str, str],
    *,
    through: set[str],
    lost: set[str],
    pardoned: set[str],
    kept: set[str],
    events: Sequence[Event],
    policy: str,
    outcome: tuple[str, str | None],
) -> list[str]:
    """What should not be, in a run where it mattered in which order Vigil heard of things: by the statuses seen, and
    who was skipped through a failure, lost a race, was pardoned or kept from before a retry."""
    since = max((number for number, event in enumerate(events) if event[0] == "retried"), default=-1) + 1
    cancelled = {event[1] for event in events if event[0] in ("cancelled", "forced") or event[2:] == ("asked",)}
    stops = {event[1] for event in events[since:] if event[0] == "stop"}
    stops |= {"abort" for event in events[since:] if event[2:] == ("abort",)}
    ends = {"completed": "success", "failed": "failed", "cancelled": "cancelled"}
    before = {name: ends.get(status, "failed" if name in through else "skipped") for name, status in seen.items()}
    before |= {name: "skipped" for name in lost if seen[name] != "completed"}
    before |= {name: "success" for name in pardoned if seen[name] == "failed"}
    reference = Reference(policy=policy, jobs=jobs, status=dict(seen), ends=before, lost=lost)
    failed = [name for name in jobs if reference.failed(name) and name not in pardoned]
    stopped = bool(stops) or (policy == "fail_fast" and bool(failed))
    open_before = {
        name: end
        for name, end in before.items()
        if seen[name] != "cancelled" or name in lost | cancelled or not stopped
    }
    wrong: list[str] = []
    # Who is about to be skipped may be cancelled first, when those after it have been skipped with it.
    while doomed := [name for name in jobs.keys() - open_before if verdict(jobs[name], open_before) is False]:
        open_before |= {
            name: "failed" if BAD & {open_before.get(other) for other in jobs[name].after} else "skipped"
            for name in doomed
        }
    for name, job in jobs.items():
        held = verdict(job, open_before)
        if name in kept:
            continue
        if seen[name] in ("completed", "failed") and held is not True:
            wrong.append(f"{name} is {seen[name]}, though its rule does not hold")
        if seen[name] == "skipped" and held is not False and job.condition is None:
            wrong.append(f"{name} is skipped, though its rule may hold")
        if seen[name] == "cancelled" and name not in lost | cancelled and not stopped:
            wrong.append(f"{name} is cancelled, and nobody knows why")
        if name in lost and not any(other.race and name in other.after for other in jobs.values()):
            wrong.append(f"{name} has lost no race")
    codes = {"deadline": "TIMED_OUT", "abort": "ABORTED"}
    said: set[tuple[str, str | None]] = {("failed", codes[why]) for why in stops & codes.keys()}
    said = said or {("failed", "JOB_FAILED") if failed else ("completed", None)}
    if outcome not in ({("cancelled", None)} if "cancel" in stops else said):
        wrong.append(f"the run is {outcome}, after {stops} and failures of {failed}")
    return wrong
