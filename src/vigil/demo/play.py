"""Play the story on a stack through the public API: one thread per machine, per client and for the WebSocket."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, Queue
from typing import TYPE_CHECKING, Self

import httpx

from vigil.demo.facts import ClientAnswered, DemoState, EventReceived, Fact, MachineReported
from vigil.demo.story import CLIENTS, JOB_TYPE, LATE_CLIENTS, MACHINES, Client, Json, Machine, Step

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

LONG_POLL_S = 2
"""Short, so that the demo shows repeated requests; the first request does not wait. Your own clients leave this out
and wait for up to 20 s."""
TIMEOUT_S = 90
"""A performance that takes longer has failed."""


class PlayFailed(Exception):
    """An answer of the stack that the demo does not expect."""


class Play:
    """One performance on a stack. Entering the block prepares it; iterating plays it and yields each fact.

    Both raise PlayFailed. `pace` scales the machines' pauses: 1 is for people, less is faster.
    """

    def __init__(self, api_url: str, ws_url: str, api_key: str, *, pace: float = 1) -> None:
        self.state = DemoState()
        self._ws_url = ws_url
        self._authorization = {"Authorization": f"Bearer {api_key}"}
        self._api = httpx.Client(base_url=api_url, headers=self._authorization, timeout=40, trust_env=False)
        self._pace = pace
        self._facts: Queue[Fact | Exception] = Queue()
        self._acknowledged = threading.Event()
        self._all_registered = threading.Barrier(len(MACHINES) + len(CLIENTS))
        self._started_at = time.monotonic()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(self._api.close)
            self._warm_up()
            self.state.job_ids.update(self._create_jobs())
            self._socket = stack.enter_context(self._connect())
            self._start(self._listen)
            self._subscribe("machines", [f"job:{job_id}" for job_id in self.state.job_ids.values()])
            if not self._acknowledged.wait(timeout=30):
                raise PlayFailed("The WebSocket does not answer.")
            self._close = stack.pop_all().close
        self._started_at = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __iter__(self) -> Iterator[Fact]:
        players = [self._start(self._run, machine) for machine in MACHINES]
        players += [self._start(self._wait, client) for client in CLIENTS]
        yield from self._facts_until(lambda: not any(player.is_alive() for player in players))
        players = [self._start(self._wait, client) for client in LATE_CLIENTS]
        yield from self._facts_until(
            lambda: not any(player.is_alive() for player in players) and self.state.all_waits_announced
        )

    def _warm_up(self) -> None:
        """Start a process of the API for each machine and client: a cold start takes longer than their steps."""
        count = len(MACHINES) + len(CLIENTS)
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(lambda _: self._call("GET", "/v1/jobs?page_size=1"), range(count)))

    def _create_jobs(self) -> dict[str, str]:
        jobs = [{"job_type": JOB_TYPE, "name": machine.name, "tags": ["demo"]} for machine in MACHINES]
        results = self._call("POST", "/v1/jobs/bulk", {"jobs": jobs})["results"]
        created = {machine.name: result.get("job") for machine, result in zip(MACHINES, results, strict=True)}
        if None in created.values():
            raise PlayFailed(f"The API did not create the jobs: {results}")
        for name, job in created.items():
            self._facts.put(MachineReported(0, name, job))
        return {name: job["job_id"] for name, job in created.items()}

    def _run(self, machine: Machine) -> None:
        self._all_registered.wait(TIMEOUT_S)
        for step in machine.steps:
            time.sleep(step.after_s * self._pace)
            job = self._report(self.state.job_ids[machine.name], step)
            self._facts.put(MachineReported(self._now_s, machine.name, job))

    def _report(self, job_id: str, step: Step) -> Json:
        if step.verb == "report":
            return self._call("PATCH", f"/v1/jobs/{job_id}", step.body)
        return self._call("POST", f"/v1/jobs/{job_id}/{step.verb}", step.body)

    def _wait(self, client: Client) -> None:
        """Run the loop of a client: post the last answer until it contains no `wait_on`."""
        answer = client.request(self.state.job_ids)
        rounds = 0
        while "wait_on" in answer:
            long_poll_s = LONG_POLL_S if rounds else 0
            answer = self._call("POST", "/scheduler/wait-jobs", answer, Prefer=f"wait={long_poll_s}")
            rounds += 1
            self._facts.put(ClientAnswered(self._now_s, client.name, rounds, answer))
            if rounds == 1 and client in CLIENTS:
                self._subscribe(client.name, [f"wait:{answer['wait_id']}"])
                # The machines start after every client has registered its wait and its subscription.
                self._all_registered.wait(TIMEOUT_S)

    def _call(self, method: str, path: str, body: Json | None = None, **headers: str) -> Json:
        try:
            response = self._api.request(method, path, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise PlayFailed(f"{method} {path}: {error!r}") from error
        if response.is_error:
            raise PlayFailed(f"{method} {path} failed with {response.status_code}: {response.text}")
        answer: Json = response.json()
        return answer

    def _connect(self) -> ClientConnection:
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        try:
            return connect(self._ws_url, additional_headers=self._authorization, proxy=None, open_timeout=30)
        except (WebSocketException, OSError) as error:
            raise PlayFailed(f"No WebSocket at {self._ws_url}: {error!r}") from error

    def _subscribe(self, subscription: str, topics: list[str]) -> None:
        self._socket.send(json.dumps({"action": "subscribe", "id": subscription, "topics": topics}))

    def _listen(self) -> None:
        for text in self._socket:
            message = json.loads(text)
            match message["type"]:
                case "ack":
                    self._acknowledged.set()
                case "event":
                    self._facts.put(EventReceived(self._now_s, message["data"]))
                case _:
                    raise PlayFailed(f"The WebSocket refused a message: {message['data']}")

    @property
    def _now_s(self) -> float:
        return time.monotonic() - self._started_at

    def _start(self, target: Callable[..., None], *arguments: object) -> threading.Thread:
        """Run a function in a thread. Its failure ends the performance."""

        def run() -> None:
            try:
                target(*arguments)
            except Exception as error:
                self._facts.put(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def _facts_until(self, is_done: Callable[[], bool]) -> Iterator[Fact]:
        """Apply and yield facts as they arrive, until the part is over and no fact is left."""
        while True:
            done = is_done()
            try:
                fact = self._facts.get(timeout=0.05)
            except Empty:
                if done:
                    return
                if self._now_s > TIMEOUT_S:
                    raise PlayFailed(f"The demo has not ended after {TIMEOUT_S} s.") from None
                continue
            if isinstance(fact, PlayFailed):
                raise fact
            if isinstance(fact, Exception):
                raise PlayFailed(repr(fact)) from fact
            self.state.apply(fact)
            yield fact
