"""The WebSocket from outside."""

from __future__ import annotations

from uuid import uuid4

import pytest
import uuid6
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.e2e.harness import Aws, Client, Key, body_of, eventually, websocket
from vigil.local import Stack


def test_key_or_unused_ticket_opens_a_socket(stack: Stack, client: Client, key: Key) -> None:
    with websocket(stack, key.token) as socket:
        socket.send("ping", "p1")
        assert socket.expect("pong", "p1") == {}
        socket.send("ping")
        socket.expect("pong", None)
    ticket = client.post("/v1/tickets", status=201)["ticket"]
    with websocket(stack, ticket=ticket) as socket:
        socket.silent()
    forged = f"{ticket[:-1]}{'0' if ticket[-1] != '0' else '1'}"
    for refused in ({"ticket": ticket}, {"ticket": forged}, {"token": key.token[:-1]}, {"token": ticket}, {}):
        with pytest.raises(InvalidStatus), websocket(stack, **refused):
            pass
    assert client.call("GET", "/v1/jobs", authorization=f"Bearer {ticket}").status_code == 403


@pytest.mark.smoke
def test_subscription_receives_job_events_after_its_acknowledgement(stack: Stack, client: Client, key: Key) -> None:
    job_id = client.job(queue="lab")
    with websocket(stack, key.token) as socket:
        socket.send("subscribe", "s1", topics=[f"job:{job_id}"])
        client.start(job_id)
        client.report(job_id, job_stage="boot")
        client.report(job_id, progress=0.5)
        client.complete(job_id, result={"large": "x" * 1000})
        assert socket.expect("ack", "s1") == {"topics": [f"job:{job_id}"]}
        told = [socket.expect("event", "s1")]
        while told[-1]["type"] != "vigil.job.completed":
            told.append(socket.expect("event", "s1"))
        # An event during the subscription may arrive twice, with one id; an earlier event arrives once or not at all.
        kinds = list({event["id"]: event["type"].removeprefix("vigil.job.") for event in told}.values())
        assert kinds == ["created", "started", "updated", "progress", "completed"][-len(kinds) :]
        done = told[-1]
        assert (done["specversion"], done["subject"], done["source"]) == ("1.0", job_id, f"/vigil/{key.namespace}")
        assert done["id"] == f"{job_id}.4"
        assert (done["data"]["status"], done["data"]["job_health"]) == ("completed", "success")
        assert "result" not in done["data"]
        socket.silent()


def test_subscription_with_since_replays_missed_events(stack: Stack, client: Client, key: Key) -> None:
    job_id = client.running()
    client.report(job_id, job_stage="boot")
    client.report(job_id, job_stage="setup")
    topic = f"job:{job_id}"
    with websocket(stack, key.token) as socket:
        socket.subscribe("s1", topic, since=f"{job_id}.2")
        assert [event["id"] for event in socket.events("s1", 2)] == [f"{job_id}.3", f"{job_id}.4"]
        socket.subscribe("s2", topic)
        socket.silent()
        client.complete(job_id)
        assert {socket.next()["id"], socket.next()["id"]} == {"s1", "s2"}
        socket.subscribe("s3", topic)
        (last,) = socket.events("s3", 1)
        assert (last["type"], last["id"]) == ("vigil.job.completed", f"{job_id}.5"), "over already: told at once"


def test_queue_and_namespace_topics_receive_only_their_events(stack: Stack, client: Client, aws: Aws, key: Key) -> None:
    with (
        Client(stack, aws.key().token) as other_tenant,
        websocket(stack, key.token) as lab,
        websocket(stack, key.token) as everything,
    ):
        lab.subscribe("lab", "queue:lab")
        everything.subscribe("all", "namespace")
        other_tenant.job(queue="lab")
        here, elsewhere = client.job(queue="lab"), client.job(queue="other")
        assert [event["subject"] for event in lab.events("lab", 1)] == [here]
        assert {event["subject"] for event in everything.events("all", 2)} == {here, elsewhere}
        lab.send("unsubscribe", "lab")
        assert lab.expect("ack", "lab") == {"topics": ["queue:lab"]}
        another = client.job(queue="lab")
        assert [event["subject"] for event in everything.events("all", 1)] == [another]
        lab.silent()


def test_wait_registered_on_a_socket_sends_its_end_event(stack: Stack, client: Client, key: Key) -> None:
    job_id = client.running()
    with websocket(stack, key.token) as socket:
        socket.send("wait", "w1", wait_on={job_id: {"job_stage": "boot"}}, wait_options={"get_fields": {"n": None}})
        ack = socket.expect("ack", "w1")
        assert (ack["status"], ack["wait_on"]) == ("waiting", {job_id: {"job_stage": "boot"}})
        client.report(job_id, job_stage="boot", fields={"n": 7})
        (met,) = socket.events("w1", 1)
        assert (met["type"], met["subject"]) == ("vigil.wait.met", ack["wait_id"])
        assert met["data"]["waited_jobs"] == {job_id: {"job_stage": "boot", "n": "7"}}
        socket.subscribe("again", f"wait:{ack['wait_id']}")
        assert socket.events("again", 1) == [met], "the same event under the same id"
        socket.send("wait", "w2", wait_on={str(uuid6.uuid7()): None})
        assert socket.expect("error", "w2")["error"] == "JOB_NOT_FOUND"


def test_hostile_frames_get_errors_and_the_socket_stays_open(stack: Stack, client: Client, aws: Aws, key: Key) -> None:
    with Client(stack, aws.key().token) as other_tenant:
        secret = other_tenant.job()
    frames = [
        ("", "MALFORMED_REQUEST"),
        ("{", "MALFORMED_REQUEST"),
        ("null", "VALIDATION_FAILED"),
        ("[" * 100, "MALFORMED_REQUEST"),
        ('{"action": 7}', "VALIDATION_FAILED"),
        ('{"action": "$connect", "id": "x"}', "VALIDATION_FAILED"),
        ('{"action": "$disconnect", "id": "x"}', "VALIDATION_FAILED"),
        ('{"action": "subscribe", "id": "a\\u0000b", "topics": ["namespace"]}', "VALIDATION_FAILED"),
        ('{"action": "subscribe", "id": "x", "topics": []}', "VALIDATION_FAILED"),
        ('{"action": "subscribe", "id": "x", "topics": ["workflow:7"]}', "WORKFLOW_NOT_FOUND"),
        ('{"action": "subscribe", "id": "x", "topics": ["job:7"]}', "JOB_NOT_FOUND"),
        ('{"action": "subscribe", "id": "x", "topics": ["job:' + secret + '"]}', "JOB_NOT_FOUND"),
        (
            '{"action": "subscribe", "id": "x", "topics": ["namespace"], "since": "' + secret + '.1"}',
            "VALIDATION_FAILED",
        ),
        ('{"action": "ping", "id": "' + "x" * 100_000 + '"}', "VALIDATION_FAILED"),
        ('{"action": "ping", "id": "x", "more": 1}', "VALIDATION_FAILED"),
        ('{"action": "ping", "id": "' + "é" * 70_000 + '"}', "PAYLOAD_TOO_LARGE"),
    ]
    with websocket(stack, key.token) as socket:
        for frame, error in frames:
            socket.connection.send(frame)
            message = socket.next()
            assert (message["type"], message["data"]["error"]) == ("error", error), (frame[:80], message)
        socket.connection.send(b"\xff\xfe\x00")
        assert socket.next()["type"] == "error"
        socket.silent()


def test_rows_of_a_lost_socket_are_removed(stack: Stack, client: Client, aws: Aws, key: Key) -> None:
    job_id = client.job()
    subscribers = f"{key.namespace}#topic#job:{job_id}"
    with websocket(stack, key.token) as socket:
        socket.subscribe("s1", f"job:{job_id}")
        eventually(lambda: aws.rows(subscribers), what="subscription found by its topic")
        (row,) = aws.rows(subscribers)
        connection_id = row["sk"]["S"].split("#")[0]
        assert len(aws.rows(f"{key.namespace}#connection#{connection_id}")) == 2
    eventually(lambda: not aws.rows(subscribers), what="subscription removed")
    eventually(lambda: not aws.rows(f"{key.namespace}#connection#{connection_id}"), what="connection removed")

    # The disconnect of this socket was lost: the next event finds that the socket is gone.
    lost = f"lost{uuid4().hex[:12]}"
    for partition, sort, more in (
        (f"{key.namespace}#connection#{lost}", "A", {"key_id": {"S": key.key_id}, "entity": {"S": "connection"}}),
        (f"{key.namespace}#connection#{lost}", "S#s1", {"topics": {"SS": [f"job:{job_id}"]}}),
        (subscribers, f"{lost}#s1", {"entity": {"S": "subscription"}}),
    ):
        item = {"pk": {"S": partition}, "sk": {"S": sort}, "schema_version": {"N": "1"}, **more}
        aws.dynamodb.put_item(TableName=stack.table_name, Item=item)  # type: ignore[arg-type]
    client.start(job_id)
    eventually(lambda: not aws.rows(subscribers), what="subscription removed")
    eventually(lambda: not aws.rows(f"{key.namespace}#connection#{lost}"), what="connection removed")


def test_revoked_key_loses_its_sockets(stack: Stack, aws: Aws, key: Key) -> None:
    doomed = aws.key("read", namespace=key.namespace)
    with websocket(stack, doomed.token) as socket, websocket(stack, key.token) as other:
        socket.subscribe("s1", "namespace")
        revoked = aws.admin("revoke_key", namespace=doomed.namespace, key_id=doomed.key_id)
        assert revoked["disconnected"] == 1
        with pytest.raises(ConnectionClosed):
            socket.next()
        other.silent()
    with pytest.raises(InvalidStatus), websocket(stack, doomed.token):
        pass
    eventually(lambda: not aws.rows(f"{key.namespace}#key#{doomed.key_id}"), what="connection forgotten")


def test_any_key_may_subscribe_to_its_own_namespace(stack: Stack, aws: Aws, client: Client, key: Key) -> None:
    """Every scope contains `read`, so every key may subscribe; a key receives events of its own namespace only."""
    worker = aws.key("work", namespace=key.namespace)
    with websocket(stack, worker.token) as socket:
        socket.subscribe("s1", "namespace")
        body_of(client.call("POST", "/v1/jobs", {"job_type": "test"}), 202)
        assert socket.events("s1", 1)[0]["type"] == "vigil.job.created"
