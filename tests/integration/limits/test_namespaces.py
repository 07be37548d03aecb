"""An operator suspends, resumes and deletes a namespace."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from random import Random
from typing import Any

import pytest

from tests.support.api import Client
from tests.support.table import TABLE_NAME, aws
from tests.support.world import NAMESPACE, World
from vigil_core import wiring
from vigil_core.api.admin import Admin
from vigil_core.api.schedules.models import parse_schedule
from vigil_core.domain.limits import NamespaceState
from vigil_core.services.auth.api_keys import create_key
from vigil_core.services.auth.authenticate import authenticate_header, authenticate_ticket
from vigil_core.services.auth.context import AuthContext
from vigil_core.services.auth.tickets import issue_ticket
from vigil_core.services.executors.dispatch import dispatch
from vigil_core.services.limits.namespaces import SETTLING_TIME, NamespaceContents
from vigil_core.services.schedules.fire import fire_schedule
from vigil_core.services.schedules.manage import put_schedule
from vigil_core.store import keys
from vigil_core.store.auth.api_keys import ApiKeyStore
from vigil_core.store.auth.tickets import TicketStore
from vigil_core.store.namespaces import NamespaceRows, NamespaceStore
from vigil_core.store.table import DynamoTable


class Operator:
    """The admin function with the table of the world."""

    def __init__(self, world: World, table: DynamoTable) -> None:
        self.world = world
        self.closed: list[str] = []
        self.auth = AuthContext(
            api_keys=ApiKeyStore(table),
            tickets=TicketStore(table),
            namespaces=NamespaceStore(table, now=lambda: world.time, concurrency=10),
            now=lambda: world.time,
        )
        unused: Any = None
        contents = NamespaceContents(
            table=table, rows=NamespaceRows(client=aws("dynamodb"), table_name=TABLE_NAME), objects=world.objects
        )
        self.admin = Admin(
            world.ctx, keys=self.auth, disconnect=self.disconnect, dead_letters=unused, contents=contents
        )

    def disconnect(self, namespace: str, key_id: str) -> int:
        self.closed.append(key_id)
        return 1

    def ask(self, action: str, *, seconds: float = 300, **fields: Any) -> dict[str, Any]:
        request = {"action": action, "namespace": NAMESPACE, **fields}
        answer = self.admin.handle(request, self.world.time + timedelta(seconds=seconds))
        json.dumps(answer)
        return answer

    def delete(self) -> None:
        cursor: Any = None
        while (answer := self.ask("delete_namespace", cursor=cursor))["cursor"] is not None:
            cursor = answer["cursor"] or None
            self.world.pass_time(answer["wait_s"])


@pytest.fixture
def operator(world: World, table: DynamoTable) -> Operator:
    return Operator(world, table)


def all_rows() -> list[str]:
    return [item["pk"]["S"] for item in aws("dynamodb").scan(TableName=TABLE_NAME)["Items"]]


def test_no_key_and_no_ticket_of_a_suspended_namespace_works(operator: Operator) -> None:
    key, token = create_key(operator.auth, NAMESPACE, ["admin"])
    header = f"Bearer {token.to_text()}"
    access = authenticate_header(operator.auth, header)
    assert access
    ticket, _ = issue_ticket(operator.auth, access)
    answer = operator.ask("suspend_namespace")
    assert (answer["state"], answer["disconnected"]) == ("suspended", 1)
    assert operator.closed == [key.key_id]
    assert authenticate_header(operator.auth, header) is None
    assert authenticate_ticket(operator.auth, ticket.to_text()) is None
    assert operator.ask("suspend_namespace")["since"] == answer["since"]
    assert operator.ask("resume_namespace")["state"] == "active"
    assert authenticate_header(operator.auth, header)
    assert authenticate_ticket(operator.auth, ticket.to_text()), "a refused ticket is not consumed"


def test_api_refuses_a_key_that_api_gateway_still_remembers(client: Client) -> None:
    wiring.context().limits.namespaces.set_state(client.namespace, NamespaceState.SUSPENDED)
    client.get("/v1/jobs").problem(403, "FORBIDDEN")
    assert Client(namespace="other").get("/v1/jobs").status == 200


def test_nothing_fires_or_is_dispatched_until_the_namespace_resumes(operator: Operator, world: World) -> None:
    ctx = world.ctx
    body: Any = {"rate": "1 hour", "job": {"job_type": "t"}}
    schedule = parse_schedule(
        NAMESPACE, "s", body, now=world.time, new_id=ctx.new_id, find_types=ctx.job_types.find_many
    )
    put_schedule(ctx, schedule)
    job_id = world.job(executor="lambda", job_type="call", target_ref="r")
    operator.ask("suspend_namespace")
    world.pass_time(3_700)
    fire_schedule(ctx, NAMESPACE, "s")
    waiting = ctx.schedules.find(NAMESPACE, "s")
    assert waiting
    assert waiting.last_created_id is None
    assert not dispatch(ctx, NAMESPACE, job_id, actor="test")
    assert not world.executors.invocations
    operator.ask("resume_namespace")
    fire_schedule(ctx, NAMESPACE, "s")
    fired = ctx.schedules.find(NAMESPACE, "s")
    assert fired
    assert fired.last_created_id


def test_suspension_reaches_another_process_within_60_seconds(operator: Operator, world: World) -> None:
    assert world.ctx.limits.namespaces.is_active(NAMESPACE)
    operator.auth.namespaces.set_state(NAMESPACE, NamespaceState.SUSPENDED)
    world.pass_time(60)
    assert not world.ctx.limits.namespaces.is_active(NAMESPACE)


def fill(world: World, auth: AuthContext) -> None:
    create_key(auth, NAMESPACE, ["admin"])
    job_id = world.job(payload={"a": 1}, unique_key="u")
    world.wait({job_id: None})
    world.ctx.limits.namespaces.set_limit(NAMESPACE, "queues", 5)
    for number in range(3):
        world.objects.put(f"payloads/{NAMESPACE}/{number}", "x", retention_class="open")
        world.objects.put(f"uploads/{NAMESPACE}/{number}", "x", retention_class="open")


@pytest.mark.parametrize("seed", range(5))
def test_deletion_removes_every_row_and_object_of_one_namespace(
    operator: Operator, world: World, table: DynamoTable, seed: int
) -> None:
    fill(world, operator.auth)
    world.objects.put("payloads/teams/1", "other", retention_class="open")
    others = {"teams#job#1", "team-b#job#1", "due#0", "long-polls#0"}
    for pk in others:
        table.batch_write(puts=[{"pk": pk, "sk": "A", "entity": "x", "schema_version": 1, "ttl": 1}])
    random, began_at = Random(seed), world.time
    small_pages = SmallPages(operator.admin._contents.rows, random)
    object.__setattr__(operator.admin._contents, "rows", small_pages)
    cursor: Any = None
    late = random.randrange(1, 4)
    for step in range(1_000):
        answer = operator.ask("delete_namespace", cursor=cursor, seconds=random.choice([0, 300]))
        cursor = answer["cursor"]
        if step == late:
            world.job()  # A function that was running writes once more.
        if cursor is None:
            break
        cursor = random.choice([cursor, None]) if cursor else None  # The operator interrupts and repeats the command.
        world.pass_time(random.choice([1, 60]))
    assert cursor is None
    assert set(all_rows()) == others
    assert world.objects.stored.keys() == {"payloads/teams/1"}
    assert world.time - began_at >= SETTLING_TIME


class SmallPages:
    """Rows in pages of a few, as if the table were large."""

    def __init__(self, rows: Any, random: Random) -> None:
        self.rows, self.random = rows, random

    def page(
        self, namespace: str, cursor: Mapping[str, str] | None
    ) -> tuple[Sequence[keys.Key], dict[str, str] | None]:
        found, _ = self.rows.page(namespace, None)
        size = self.random.randint(1, 4)
        page = found[:size]
        return page, page[-1]._asdict() if len(found) > size else None


def test_namespace_that_is_being_deleted_cannot_be_resumed(operator: Operator) -> None:
    create_key(operator.auth, NAMESPACE, ["admin"])
    assert operator.ask("delete_namespace")["wait_s"] > 0
    assert operator.ask("resume_namespace")["error"] == "INVALID_TRANSITION"
    assert operator.ask("suspend_namespace")["error"] == "INVALID_TRANSITION"
    operator.delete()
    assert operator.ask("resume_namespace")["state"] == "active"


@pytest.mark.parametrize(
    "cursor", ["x", [1], {"position": {}}, {"started_at": "x", "position": {"pk": "a", "sk": "b"}}]
)
def test_foreign_cursor_is_refused(operator: Operator, cursor: object) -> None:
    assert operator.ask("delete_namespace", cursor=cursor)["errors"][0]["pointer"] == "/cursor"
