"""Plays the story on a stack: a thread for each machine, each client and the WebSocket, all through the public API."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, Queue
from typing import TYPE_CHECKING

import httpx

from vigil.demo.facts import Answered, Fact, Heard, Known, Reported
from vigil.demo.story import CLIENTS, JOB_TYPE, LATECOMERS, MACHINES, Client, Json, Machine, Step

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

HOLD_S = 2
"""Short, so that one sees answers being posted back. A client of one's own leaves it out and is held for 20 s."""
LONGEST_S = 90
"""After this many seconds without an end, something is wrong."""


class PlayFailed(Exception):
    """The stack did not answer as the demo needs it to."""


class Play:
    """One performance. `pace` stretches the machines' pauses: 1 is for people, less is faster.

    Iterating plays, and yields each fact as it becomes known. Raises PlayFailed.
    """

    def __init__(self, api_url: str, ws_url: str, api_key: str, *, pace: float = 1) -> None:
        self._ws_url = ws_url
        self._authorization = {"Authorization": f"Bearer {api_key}"}
        self._api = httpx.Client(base_url=api_url, headers=self._authorization, timeout=40, trust_env=False)
        self._pace = pace
        self._facts: Queue[Fact | Exception] = Queue()
        self._wake_up()
        self._began = time.monotonic()
        self.known = Known(job_ids=self._create_jobs())

    @property
    def now_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def __iter__(self) -> Iterator[Fact]:
        with contextlib.closing(self._api), self._listening() as socket:
            players = [self._start(self._run, machine) for machine in MACHINES]
            players += [self._start(self._wait, client) for client in CLIENTS]
            followed: set[str] = set()
            for fact in self._facts_until(lambda: not any(player.is_alive() for player in players)):
                if isinstance(fact, Answered) and fact.client not in followed:
                    followed.add(fact.client)
                    _subscribe(socket, fact.client, [f"wait:{fact.answer['wait_id']}"])
                yield fact
            players = [self._start(self._wait, client) for client in LATECOMERS]
            yield from self._facts_until(
                lambda: not any(player.is_alive() for player in players) and self.known.all_ends_heard
            )

    def _wake_up(self) -> None:
        """Have a worker of the API ready for each machine and client: starting one takes longer than a step of theirs."""
        with ThreadPoolExecutor(len(MACHINES) + len(CLIENTS)) as pool:
            list(pool.map(lambda _: self._call("GET", "/v1/jobs?page_size=1"), range(len(MACHINES) + len(CLIENTS))))

    def _create_jobs(self) -> dict[str, str]:
        jobs = [{"job_type": JOB_TYPE, "name": machine.name, "tags": ["demo"]} for machine in MACHINES]
        results = self._call("POST", "/v1/jobs/bulk", {"jobs": jobs})["results"]
        created = {machine.name: result.get("job") for machine, result in zip(MACHINES, results, strict=True)}
        if None in created.values():
            raise PlayFailed(f"The jobs were not created: {results}")
        for name, job in created.items():
            self._facts.put(Reported(self.now_s, name, job))
        return {name: job["job_id"] for name, job in created.items()}

    def _run(self, machine: Machine) -> None:
        for step in machine.steps:
            time.sleep(step.after_s * self._pace)
            job = self._tell(self.known.job_ids[machine.name], step)
            self._facts.put(Reported(self.now_s, machine.name, job))

    def _tell(self, job_id: str, step: Step) -> Json:
        if step.verb == "report":
            return self._call("PATCH", f"/v1/jobs/{job_id}", step.body)
        return self._call("POST", f"/v1/jobs/{job_id}/{step.verb}", step.body)

    def _wait(self, client: Client) -> None:
        """A client's whole loop: post, keep what comes back, until there is no `wait_on`."""
        answer = client.request(self.known.job_ids)
        rounds = 0
        while "wait_on" in answer:
            answer = self._call("POST", "/scheduler/wait-jobs", answer, Prefer=f"wait={HOLD_S}")
            rounds += 1
            self._facts.put(Answered(self.now_s, client.name, rounds, answer))

    def _call(self, method: str, path: str, body: Json | None = None, **headers: str) -> Json:
        try:
            response = self._api.request(method, path, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise PlayFailed(f"{method} {path}: {error!r}") from error
        if response.is_error:
            raise PlayFailed(f"{method} {path} was answered {response.status_code}: {response.text}")
        answer: Json = response.json()
        return answer

    @contextlib.contextmanager
    def _listening(self) -> Iterator[ClientConnection]:
        """A WebSocket that hears of the three jobs."""
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        try:
            socket = connect(self._ws_url, additional_headers=self._authorization, proxy=None)
        except (WebSocketException, OSError) as error:
            raise PlayFailed(f"No WebSocket at {self._ws_url}: {error!r}") from error
        with socket:
            listener = self._start(self._listen, socket)
            _subscribe(socket, "machines", [f"job:{job_id}" for job_id in self.known.job_ids.values()])
            yield socket
        listener.join(timeout=5)

    def _listen(self, socket: ClientConnection) -> None:
        for text in socket:
            message = json.loads(text)
            if message["type"] == "error":
                raise PlayFailed(f"The WebSocket refused something: {message['data']}")
            if message["type"] == "event":
                self._facts.put(Heard(self.now_s, message["data"]))

    def _start(self, act: Callable[..., None], *arguments: object) -> threading.Thread:
        """Act in a thread of its own, whose failure ends the play."""

        def run() -> None:
            try:
                act(*arguments)
            except Exception as error:
                self._facts.put(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def _facts_until(self, over: Callable[[], bool]) -> Iterator[Fact]:
        """Facts as they come, each learned before it is shown, until it is over and none is left."""
        while True:
            done = over()
            try:
                fact = self._facts.get(timeout=0.05)
            except Empty:
                if done:
                    return
                if self.now_s > LONGEST_S:
                    raise PlayFailed(f"Not over after {LONGEST_S} s.") from None
                continue
            if isinstance(fact, PlayFailed):
                raise fact
            if isinstance(fact, Exception):
                raise PlayFailed(repr(fact)) from fact
            self.known.learn(fact)
            yield fact


def _subscribe(socket: ClientConnection, subscription: str, topics: list[str]) -> None:
    socket.send(json.dumps({"action": "subscribe", "id": subscription, "topics": topics}))
