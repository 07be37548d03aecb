"""The emulator's process: start, stop, and consistent saving of its state and the streams' positions."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from vigil.local.errors import LocalError
from vigil.local.snapshots import SavedState
from vigil.local.stack import ACCESS_KEY, REGION, SECRET_KEY
from vigil.local.state_dir import StateDir, tail, wait_until

START_TIMEOUT_S = 30
# Saving a state of some hundred megabytes takes tens of seconds.
STOP_TIMEOUT_S = 60
_GIB = 2**30
JOURNAL_REMAINS = (
    "The last good files remain: the next `vigil local up` recovers the table and the buckets from them. Messages and "
    "executions of the last minutes may be lost."
)
# The proxy of the environment does not apply to addresses of this machine.
NO_PROXY_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def port_in_use(port: int) -> bool:
    """Return whether a program listens on this port of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def port_taken(port: int) -> str:
    """Return the message about a taken port, also for commands without the option `--port`, such as `make demo`."""
    return f"Port {port} is taken by another program; choose another one with --port or the variable VIGIL_LOCAL_PORT."


def is_healthy(port: int) -> bool:
    """Return whether the emulator answers on this port."""
    try:
        with NO_PROXY_OPENER.open(f"http://127.0.0.1:{port}/_ministack/health", timeout=2) as response:
            return int(response.status) == 200
    except (urllib.error.URLError, OSError):
        return False


def max_concurrency() -> int:
    """Return how many concurrent executions fit into memory. Each is a process of 30 to 46 MB; AWS allows 1,000."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(16, min(256, memory // _GIB * 10))


def concurrency() -> str:
    """Return the number of concurrent executions: that of the environment, otherwise what fits into memory."""
    return os.environ.get("VIGIL_LOCAL_CONCURRENCY") or str(max_concurrency())


def environment(state_dir: StateDir, port: int) -> dict[str, str]:
    """Return the whole environment of the emulator.

    The functions' processes inherit it, so it contains nothing else of the caller's environment.
    """
    package = Path(__file__).parents[2]
    inherited = {
        name: os.environ[name] for name in ("HOME", "LANG", "LC_ALL", "TZ", "PYTHONWARNINGS") if name in os.environ
    }
    return {
        **inherited,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": str(package),
        "TMPDIR": str(state_dir.temporary),
        "GATEWAY_PORT": str(port),
        "PERSIST_STATE": "1",
        "S3_PERSIST": "1",
        "STATE_DIR": str(state_dir.state),
        "S3_DATA_DIR": str(state_dir.state / "s3"),
        # Vigil does not use these two services, and each would take a fixed port.
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "LAMBDA_ACCOUNT_CONCURRENCY": concurrency(),
        # With enforcement, a function has only the permissions of its role, as on AWS.
        "AUTH": os.environ.get("VIGIL_LOCAL_ENFORCE_IAM") or "false",
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": REGION,
    }


@dataclass(frozen=True)
class Emulator:
    """A running emulator. `wakeup_fd` is a pipe that receives a byte for each new stream record."""

    state_dir: StateDir
    port: int
    process: subprocess.Popen[bytes]
    wakeup_fd: int

    @classmethod
    def start(cls, state_dir: StateDir, port: int, addresses: list[str]) -> Emulator:
        """Start the emulator from the saved state and wait until it answers.

        Raises:
            LocalError: The port is taken, or the emulator does not start.
        """
        if port_in_use(port):
            raise LocalError(port_taken(port))
        state_dir.temporary.mkdir(parents=True, exist_ok=True)
        state_dir.start_error.unlink(missing_ok=True)
        wakeup_fd, wakeup_write_fd = os.pipe()
        with state_dir.emulator_log.open("wb") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "vigil.local.emulator_server"),
                    *(str(state_dir.directory), str(port), str(wakeup_write_fd), *addresses),
                ],
                env=environment(state_dir, port),
                pass_fds=[wakeup_write_fd],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        os.close(wakeup_write_fd)
        emulator = cls(state_dir, port, process, wakeup_fd)
        wait_until(lambda: is_healthy(port) or process.poll() is not None, START_TIMEOUT_S)
        if process.poll() is not None or not is_healthy(port):
            process.kill()
            if state_dir.start_error.exists():
                raise LocalError(state_dir.start_error.read_text(encoding="utf-8"))
            raise LocalError("The emulator did not start.", tail(state_dir.emulator_log))
        return emulator

    @property
    def exit_code(self) -> int | None:
        """The exit code, or None while the process runs."""
        return self.process.poll()

    def stop(self) -> None:
        """Save the state and stop the emulator.

        Raises:
            LocalError: The emulator did not stop in time and was killed.
        """
        stop_orphan(self.state_dir, reap=self.process)

    def kill_functions(self) -> None:
        """Kill the functions that a crashed emulator has left running."""
        _kill_session(self.process.pid)


def _kill_session(pid: int) -> None:
    """Kill the processes of the emulator's session, which are functions that still run."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def stop_orphan(state_dir: StateDir, reap: subprocess.Popen[bytes] | None = None) -> None:
    """Save the state of the emulator of this directory and stop it, whichever process started it.

    Raises:
        LocalError: The emulator did not save its state, or did not stop in time and was killed.
    """
    holder = state_dir.emulator.holder()
    if holder is None:
        return
    pid = int(holder["pid"])
    os.kill(pid, signal.SIGTERM)

    def has_ended() -> bool:
        return (reap is not None and reap.poll() is not None) or not state_dir.emulator.alive

    ended = wait_until(has_ended, STOP_TIMEOUT_S)
    _kill_session(pid)
    shutil.rmtree(state_dir.temporary, ignore_errors=True)
    if not ended:
        raise LocalError(f"The emulator did not stop in time and was killed. {JOURNAL_REMAINS}")
    require_saved(state_dir)


def require_saved(state_dir: StateDir) -> None:
    """Check that the last stop saved everything.

    Raises:
        LocalError: It did not.
    """
    if not SavedState(state_dir.state).is_complete:
        raise LocalError(f"The state could not be saved. {JOURNAL_REMAINS}", tail(state_dir.emulator_log, 3))
