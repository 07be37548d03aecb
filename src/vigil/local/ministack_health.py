"""Examine every queue and every timer of the emulator."""

from __future__ import annotations

import time
from typing import Any

# The emulator looks for messages all the time and for due timers every 10 s. On a busy machine both are late.
MAX_DELAY_S = 90


def examine(started_at: float) -> dict[str, list[dict[str, Any]]]:
    """Return each queue and timer with `name` and `problem`, which is None if it works.

    Args:
        started_at: The start of the emulator. What was due before may still be open for a while.
    """
    now = time.time()
    return {"queues": _queues(now, started_at), "timers": [*_rules(now, started_at), *_schedules(now, started_at)]}


def _queues(now: float, started_at: float) -> list[dict[str, Any]]:
    from ministack.services import lambda_svc, sqs

    mappings = {mapping["EventSourceArn"]: mapping for mapping in list(lambda_svc._esms._data.values())}
    queues = []
    names = set()
    for (account, _, url), queue in sqs._queues.all_items():
        names.add(queue["name"])
        arn = queue["attributes"]["QueueArn"]
        mapping = mappings.pop(arn, None)
        problem = _mapping_problem(mapping) if mapping else None
        due = [message["visible_at"] for message in list(queue["messages"]) if message["visible_at"] <= now]
        delay = now - max(min(due, default=now), started_at)
        if mapping and url != sqs._queue_url_for_account(account, queue["name"]):
            problem = f"its URL {url} is not of this port"
        elif mapping and not problem and delay > MAX_DELAY_S:
            problem = f"a message waits for {delay:.0f} s"
        queues.append({"name": queue["name"], "messages": len(queue["messages"]), "problem": problem})
    queues += [
        {"name": arn.rsplit(":", 1)[-1], "messages": 0, "problem": "a function reads it, but it does not exist"}
        for arn in mappings
        if ":sqs:" in arn
    ]
    return [*queues, *_unknown_queues(names)]


def _mapping_problem(mapping: dict[str, Any]) -> str | None:
    from ministack.services import lambda_svc

    name = mapping["FunctionName"]
    if mapping.get("State", "Enabled") not in {"Enabled", "Creating", "Enabling"} or not mapping.get("Enabled", True):
        return f"its messages do not reach {name}: the mapping is {mapping.get('State')}"
    if not any(key[-1] == name for key in list(lambda_svc._functions._data)):
        return f"its messages do not reach {name}: the function does not exist"
    return None


def _unknown_queues(names: set[str]) -> list[dict[str, Any]]:
    """Return the queues that the functions send to and that do not exist."""
    from ministack.services import lambda_svc

    unknown: dict[str, str] = {}
    for (_, _, function), record in list(lambda_svc._functions._data.items()):
        variables = record["config"].get("Environment", {}).get("Variables", {})
        for variable, value in variables.items():
            name = str(value).rsplit("/", 1)[-1]
            if variable.endswith("_QUEUE_URL") and name not in names:
                unknown[name] = f"{function} sends to it, but it does not exist"
    return [{"name": name, "messages": 0, "problem": problem} for name, problem in unknown.items()]


def _rules(now: float, started_at: float) -> list[dict[str, Any]]:
    from ministack.services import eventbridge

    timers = []
    for key, rule in eventbridge._rules.all_items():
        if not (expression := rule.get("ScheduleExpression")):
            continue
        problem = None
        interval = eventbridge._parse_rate_seconds(expression)
        delay = now - max(eventbridge._rule_last_fired.get(key, 0), started_at)
        if rule.get("State") != "ENABLED":
            problem = "it is disabled"
        elif not eventbridge._targets._data.get(key):
            problem = "it has no target"
        elif interval is not None and delay > interval + MAX_DELAY_S:
            problem = f"it has not fired for {delay:.0f} s"
        timers.append({"name": rule["Name"], "expression": expression, "problem": problem})
    return timers


def _schedules(now: float, started_at: float) -> list[dict[str, Any]]:
    from ministack.services import scheduler

    timers = []
    for key, schedule in scheduler._schedules.all_items():
        due_at = scheduler._at_time_epoch(schedule.get("ScheduleExpression", ""))
        has_fired = key in scheduler._schedule_last_fired
        problem = None
        if schedule.get("State") != "ENABLED":
            problem = "it is disabled"
        elif due_at is not None and not has_fired and now - max(due_at, started_at) > MAX_DELAY_S:
            problem = f"it is {now - due_at:.0f} s late"
        timers.append({"name": key[-1], "expression": schedule.get("ScheduleExpression"), "problem": problem})
    return timers
