"""The dependencies of a running job: all of them, with their true results, whatever their number and size."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any


class Dependencies(Mapping[str, dict[str, Any]]):
    """The dependencies of a job by name, each with `job_id`, `status`, `job_health` and `result`.

    A claim or an event contains only the first dependencies, and leaves out large results. The mapping reads the rest
    when it is used: the other dependencies when one of them, the number or an iteration is needed, and a result that
    was left out when its dependency is accessed. A request that fails raises the error of the handle (VigilError in a
    worker, TaskError in a Lambda function), so a missing result never looks like None.

    Several threads of a handler may use the mapping.
    """

    def __init__(
        self,
        inline: Mapping[str, Mapping[str, Any]],
        *,
        is_complete: bool,
        fetch_all: Callable[[], Iterable[Mapping[str, Any]]],
        fetch_result: Callable[[str], Any],
    ) -> None:
        """Start with the dependencies that the claim or event contains.

        Args:
            inline: The first dependencies by name.
            is_complete: Whether `inline` leaves nothing out.
            fetch_all: Reads all dependencies, each with its `name`. Large results may be left out.
            fetch_result: Reads the result of a job by its id.
        """
        self._entries = {name: dict(entry) for name, entry in inline.items()}
        self._has_all_names = is_complete
        self._fetch_all = fetch_all
        self._fetch_result = fetch_result
        self._lock = threading.RLock()

    def __getitem__(self, name: str) -> dict[str, Any]:
        """Return a dependency with its result, and read what was left out."""
        with self._lock:
            if name not in self._entries:
                self._read_all()
            entry = self._entries[name]
            if entry["truncated"]:
                entry["result"] = self._fetch_result(entry["job_id"])
                entry["truncated"] = False
            return entry

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            self._read_all()
            return iter(list(self._entries))

    def __len__(self) -> int:
        with self._lock:
            self._read_all()
            return len(self._entries)

    def __contains__(self, name: object) -> bool:
        with self._lock:
            if name not in self._entries:
                self._read_all()
            return name in self._entries

    def __repr__(self) -> str:
        names = ", ".join(self._entries)
        return f"<Dependencies: {names}{'' if self._has_all_names else ' and others'}>"

    def status(self, name: str) -> str:
        """Return the status of a dependency. Its result is not read."""
        with self._lock:
            if name not in self._entries:
                self._read_all()
            return str(self._entries[name]["status"])

    def _read_all(self) -> None:
        """Read all dependencies once. A result that is known already is kept."""
        if self._has_all_names:
            return
        for fetched in self._fetch_all():
            entry = {name: value for name, value in fetched.items() if name != "name"}
            known = self._entries.get(fetched["name"])
            if known is None or (known["truncated"] and not entry["truncated"]):
                self._entries[fetched["name"]] = entry
        self._has_all_names = True
