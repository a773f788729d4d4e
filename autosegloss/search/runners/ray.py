"""The runner on Ray: trials in long-lived worker processes, on this machine or on a cluster.

This is the only module that imports Ray, and nothing imports it before a search on Ray is asked for.

A worker is an actor that holds the objective and runs one job after another; the driver gives jobs to idle workers.
Ray Tune is not used: it ends idle actors at the end of a step and starts new ones seconds later, and a trial that the
memory monitor kills ends the whole run.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

# Read when Ray is imported. Under `uv run` Ray would pack the whole working folder for its workers; those of this
# machine run in the environment of the driver as they are, and a cluster gets the package alone.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

import ray

import psutil  # type: ignore[import-untyped]  # isort: skip  # comes with Ray
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker
from ray.exceptions import ActorUnavailableError, GetTimeoutError, OutOfMemoryError, RayActorError, RayError

from autosegloss.errors import RefusedError, SearchError, listed
from autosegloss.search.jobs import Job, Objective, Outcome
from autosegloss.search.runners.base import JobQueue, attempt

OBJECT_STORE_BYTES = 256 * 2**20  # holds one copy of the objective with its data; Ray spills the rest to disk
TRIES = 2  # attempts at a job whose worker dies: the first death may be bad luck
NODES = 5  # lost under a job before it counts as failed: losing a node is rarely the fault of the job
LOOK_SECONDS = 1.0  # between checks that Ray lives, and of the remaining nodes while there is no worker
SIGNAL_SECONDS = 0.1  # that a signal waits: a group's SIGTERM ends Ray's servers too, and they end this process
CONNECT_SECONDS = 5.0  # timeout for a cluster to answer; Ray itself tries for minutes
SOCKET_FOLDER = 42  # bytes of the path that sockets are below; Ray adds 64, and a socket's path has at most 107
PREFIX = "asl-ray-"  # of our temporary folders
_SAFE = "The journal is safe; continue with --resume."


class RayRunner:
    """Runs trials side by side in worker processes.

    The runner joins the cluster at `address` or `RAY_ADDRESS`, or the Ray that this process has started; else it
    starts Ray on this machine and shuts it down at the end. A worker that dies (killed, crashed, out of memory) or
    exceeds the time limit is replaced and its trial retried once; then the trial counts as failed. A trial whose node
    is lost is retried on another node. If not all workers fit any more, the run continues with fewer.

    Args:
        workers: Number of trials at a time.
        cpus: CPU cores per trial; fractions share a core.
        gpus: GPUs per trial; fractions share a GPU, whose memory Ray does not divide.
        time_limit: Seconds per trial; None for no limit.
        address: Address of the cluster to join, `host:port`; None takes that in `RAY_ADDRESS`.
    """

    def __init__(
        self,
        workers: int,
        cpus: float = 1,
        gpus: float = 0,
        time_limit: float | None = None,
        address: str | None = None,
    ) -> None:
        self.workers = workers
        self.cpus = cpus
        self.gpus = gpus
        self.time_limit = time_limit
        self.address = address
        self._ready = False

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Ray, with room for the workers; see `Runner.ready`."""
        if self._ready:
            yield
            return
        with _ray(self.address):
            self._check_room()
            self._ready = True
            try:
                yield
            finally:
                self._ready = False

    def run(self, study: JobQueue, objective: Objective) -> None:
        """Run the study to its end; see `Runner.run`."""
        with self.ready():
            pool = _WorkerPool(self, objective)
            try:
                while not study.finished:
                    while pool.idle and (task := pool.due(study)) is not None:
                        pool.begin(task)
                    self._handle_event(pool, study)
            finally:
                pool.stop()

    def _handle_event(self, pool: _WorkerPool, study: JobQueue) -> None:
        """Wait for the next event and handle it: a worker starts, is lost, ends its trial or exceeds the time limit."""
        event = self._next_event(pool)
        if event is None:
            self._check_capacity()
        elif event in pool.starting:
            worker = pool.starting.pop(event)
            try:
                ray.get(event)
                pool.add(worker)
            except RayError as error:
                pool.replace(worker)
                pool.note_failed_start(error)
        else:
            run = pool.running.pop(event)
            try:
                outcome = ray.get(event, timeout=0)  # finished, or past the time limit
                pool.idle.append(run.worker)
            except RayError as error:
                pool.replace(run.worker)
                task = run.task.after(error)
                if task.retry:
                    pool.retries.append(task)
                    return
                outcome = Outcome.failed(self._failure_text(error), 0.0)
            study.record(run.task.job, outcome)

    def _next_event(self, pool: _WorkerPool) -> Any:
        """The next worker to start or run to end, or the first run to exceed the limit; None if nothing happens."""
        oldest = min(pool.running, key=lambda run: pool.running[run].start, default=None)
        end = math.inf if self.time_limit is None else self.time_limit
        end = time.monotonic() + LOOK_SECONDS if oldest is None else pool.running[oldest].start + end
        while True:
            left = end - time.monotonic()
            ready, _ = ray.wait([*pool.running, *pool.starting], timeout=max(0.0, min(left, SIGNAL_SECONDS)))
            pool.check_ray()
            if ready:
                return ready[0]
            if left <= SIGNAL_SECONDS:
                return oldest

    def _failure_text(self, error: RayError) -> str:
        if isinstance(error, GetTimeoutError):
            return f"the trial exceeded {self.time_limit:g} s twice"
        if isinstance(error, OutOfMemoryError):
            return f"out of memory twice, the second time with no other trial running: {_summary(error)}"
        return f"the worker failed twice: {_summary(error)}"

    def _check_room(self) -> None:
        """Raise RefusedError if the workers do not fit, as Ray would wait forever."""
        nodes = _nodes()
        room = sum(self._slots(node) for node in nodes)
        if room < self.workers:
            has = [_amounts(node.get("CPU", 0), node.get("GPU", 0)) for node in nodes]
            raise RefusedError(
                f"{_count(self.workers, 'worker')} of {self._needs} each do not fit: Ray has "
                f"{_count(len(nodes), 'node')} with {'; '.join(listed(has))}, room for {_count(room, 'such worker')}. "
                "Lower resources.workers, resources.cpus or resources.gpus."
            )

    def _check_capacity(self) -> None:
        """Raise SearchError if no remaining node has room for a worker."""
        nodes = _nodes()
        if not any(self._slots(node) for node in nodes):
            raise SearchError(
                f"all workers are lost, and no node of Ray has {self._needs} for another "
                f"(nodes left: {len(nodes)}).\n{_SAFE}"
            )

    @property
    def _needs(self) -> str:
        return _amounts(self.cpus, self.gpus)

    def _slots(self, node: Mapping[str, float]) -> int:
        needs = {"CPU": self.cpus, "GPU": self.gpus}
        return min(
            (math.floor(node.get(kind, 0) / need + 1e-9) for kind, need in needs.items() if need > 0),
            default=self.workers,
        )


def _amounts(cpus: float, gpus: float) -> str:
    return f"{_count(cpus, 'CPU')} and {_count(gpus, 'GPU')}"


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def tune_space(dimensions: int) -> dict[str, Any]:
    """The unit cube as a search space of Ray Tune."""
    try:
        from ray import tune
    except ImportError as error:
        raise RefusedError(
            'Ray is installed without Tune; install it with: pip install "autosegloss[algorithms]"'
        ) from error
    return {f"x{i}": tune.uniform(0, 1) for i in range(dimensions)}


class _Worker:
    """A worker process: holds the objective, runs one job after another."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def answer(self) -> None:
        """Show that the worker has started."""

    def run(self, job: Job) -> Outcome:
        return attempt(self._objective, job)


class _Task(NamedTuple):
    """A job and its failed attempts: dead workers, lost nodes, and whether it ran out of memory and must run alone."""

    job: Job
    deaths: int = 0
    lost: int = 0
    alone: bool = False

    def after(self, error: RayError) -> _Task:
        """The task after the loss of its worker.

        Ray can't tell which trial used up the memory of a machine, so a task that ran out of memory is retried alone.
        """
        if isinstance(error, ActorUnavailableError) or "its node has died" in str(error):
            return self._replace(lost=self.lost + 1)
        return self._replace(deaths=self.deaths + 1, alone=isinstance(error, OutOfMemoryError))

    @property
    def retry(self) -> bool:
        return self.deaths < TRIES and self.lost < NODES


class _Run(NamedTuple):
    """A running task and its start on the monotonic clock."""

    worker: Any
    task: _Task
    start: float


class _WorkerPool:
    """The workers of a run: each is starting, idle or running. Only workers that have answered are given jobs.

    So neither a worker that no longer fits nor an idle one on a lost node blocks the run.
    """

    def __init__(self, runner: RayRunner, objective: Objective) -> None:
        worker_class: Any = ray.remote(_Worker)
        self._create = worker_class.options(num_cpus=runner.cpus, num_gpus=runner.gpus).remote
        self._objective_ref = ray.put(objective)  # once, not with every worker
        self._size = runner.workers
        self._failed_starts = 0
        self._doors, self._looked = _doors(), time.monotonic()
        self.starting: dict[Any, Any] = {}
        """Starting workers, by the reference of their answer."""
        self.idle: list[Any] = []
        """Workers without a job."""
        self.running: dict[Any, _Run] = {}
        """Running tasks, by the reference of their outcome."""
        self.retries: list[_Task] = []
        """Tasks to retry because their worker was lost."""
        for _ in range(self._size):
            self._start()

    def _start(self) -> None:
        worker = self._create(self._objective_ref)
        self.starting[worker.answer.remote()] = worker

    def add(self, worker: Any) -> None:
        """Add a worker that has answered to the idle ones."""
        self._failed_starts = 0
        self.idle.append(worker)

    def replace(self, worker: Any) -> None:
        """Replace a worker; idle workers must answer again, as they may be lost with the same node."""
        ray.kill(worker)  # it may be unreachable but alive
        self.starting |= {other.answer.remote(): other for other in self.idle}
        self.idle.clear()
        self._start()

    def note_failed_start(self, error: RayError) -> None:
        """Raise SearchError if workers never start: an error would recur, but a death may be bad luck."""
        self._failed_starts += 1
        if (isinstance(error, RayActorError) and error.actor_init_failed) or self._failed_starts > TRIES * self._size:
            raise SearchError(f"workers do not start: {_summary(error)}\n{_SAFE}")

    def check_ray(self) -> None:
        """Raise SearchError if Ray has died; looks once a second, since Ray would soon end this process itself."""
        if time.monotonic() < self._looked + LOOK_SECONDS:
            return
        for what, door in self._doors.items():
            try:
                socket.create_connection(door, timeout=CONNECT_SECONDS).close()
            except ConnectionRefusedError:
                raise SearchError(f"{what} of Ray has died: killed, or out of memory.\n{_SAFE}") from None
            except OSError:  # too many open files, or a network that is slow: Ray has patience of its own
                pass
        self._looked = time.monotonic()

    def due(self, study: JobQueue) -> _Task | None:
        """The next task; None if there is none, or if a task must run alone."""
        if any(run.task.alone for run in self.running.values()):
            return None
        if self.retries:
            return None if self.retries[0].alone and self.running else self.retries.pop(0)
        job = study.next_job()
        return None if job is None else _Task(job)

    def begin(self, task: _Task) -> None:
        """Give a task to an idle worker."""
        worker = self.idle.pop()
        self.running[worker.run.remote(task.job)] = _Run(worker, task, time.monotonic())

    def stop(self) -> None:
        """End all workers."""
        for worker in (*self.starting.values(), *self.idle, *(run.worker for run in self.running.values())):
            ray.kill(worker)


def _nodes() -> list[Mapping[str, float]]:
    """The resources of each live node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _summary(error: RayError) -> str:
    """The informative line of a Ray error; its advice on a dead process fills a page."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = lines[0] if isinstance(error, OutOfMemoryError) else lines[-1]
    return line.partition(" Worker exit type:")[0].strip()


def _doors() -> dict[str, tuple[str, int]]:
    """Where the server processes listen without which Ray ends the driver: the cluster's and that of this node."""
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    (own,) = (node for node in ray.nodes() if node["NodeID"] == context.get_node_id())  # type: ignore[no-untyped-call]
    return {
        "the control service": (host.strip("[]"), int(port)),
        "the local scheduler": (own["NodeManagerAddress"], own["NodeManagerPort"]),
    }


@contextmanager
def _ray(address: str | None) -> Iterator[None]:
    """Ray at an address, as already started, or started on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None and ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS")
    with ExitStack() as stack:
        interrupt = stack.enter_context(_termination_as_interrupt())
        with _quietly():
            if address:
                if not ray.is_initialized():  # else it is the caller's, whom `_join` refuses
                    stack.callback(ray.shutdown)
                _join(address)
            else:
                _start(stack)
        interrupt()
        yield


def _start(stack: ExitStack) -> None:
    """Start Ray on this machine, until the end of the stack."""
    sockets, spilled = stack.enter_context(_folder(sockets=True)), stack.enter_context(_folder())
    ours, started = set(psutil.Process().children()), set[psutil.Process]()

    def note() -> None:
        """Note the processes of Ray: those whose parent is killed are no descendants any more."""
        for child in set(psutil.Process().children()) - ours:
            with suppress(psutil.NoSuchProcess):
                started.update([child, *child.children(recursive=True)])

    stack.callback(_end, started)
    stack.callback(ray.shutdown)
    stack.callback(note)
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(sockets),
        object_spilling_directory=str(spilled),
    )
    note()


def _end(started: set[psutil.Process]) -> None:
    """End the processes that Ray leaves behind if one of its servers was killed."""
    for process in psutil.wait_procs(started, timeout=LOOK_SECONDS)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


@contextmanager
def _quietly() -> Iterator[None]:
    """Start Ray without two things that it has no options for.

    It prints what befalls its servers on standard output, and ends the process itself on SIGTERM.
    """
    listen, take = ray_worker.listen_error_messages, ray_utils.set_sigterm_handler
    ray_worker.listen_error_messages = lambda *_: None
    ray_utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        ray_worker.listen_error_messages, ray_utils.set_sigterm_handler = listen, take


@contextmanager
def _termination_as_interrupt() -> Iterator[Callable[[], None]]:
    """Let SIGTERM, unless the program handles it, raise KeyboardInterrupt as Ctrl-C does, so that Ray is shut down.

    Yields a function to call after Ray has started: its core handles the signal by ending the process.
    """
    before = signal.getsignal(signal.SIGTERM)
    handler = signal.default_int_handler if before in (None, signal.SIG_DFL) else before

    def interrupt() -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)

    interrupt()
    try:
        yield interrupt
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextmanager
def _folder(sockets: bool = False) -> Iterator[Path]:
    """A temporary folder, for sockets one with a short path; those that killed runs have left are removed.

    Raises:
        RefusedError: No temporary folder has a short path.
    """
    usual = [os.environ.get("RAY_TMPDIR"), tempfile.gettempdir()]
    places = [
        place for place in (*usual, "/tmp", "/var/tmp", "/dev/shm") if place and os.access(place, os.W_OK | os.X_OK)
    ]
    if sockets:
        places = [place for place in places if len(os.fsencode(place)) <= SOCKET_FOLDER - len(f"/{PREFIX}xxxxxxxx")]
    if not places:
        raise RefusedError(
            f"Ray needs a temporary folder whose path has at most {SOCKET_FOLDER - len(PREFIX) - 9} bytes, for its "
            "sockets. Set RAY_TMPDIR to one that can be written, or use --runner serial."
        )
    for left in Path(places[0]).glob(f"{PREFIX}*"):
        _remove_if_left(left)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=places[0]))
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_if_left(folder: Path) -> None:
    """Remove a temporary folder unless a process uses it, or may be about to."""
    with suppress(OSError):
        lock = os.open(folder, os.O_RDONLY)
        try:
            if time.time() - folder.stat().st_mtime > 60:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _join(address: str) -> None:
    """Connect this process to a running cluster.

    Raises:
        RefusedError: There is no cluster at the address, or it can't be joined.
    """
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not host or "/" in host or not port.isdigit():
            raise _unreachable(address, "the address must be host:port")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise _unreachable(address, getattr(error, "strerror", None) or str(error)) from None
    if ray.is_initialized():
        raise _unreachable(address, "this process is connected to Ray already")
    try:
        ray.init(address=address, runtime_env=_package_env(), log_to_driver=False, logging_level=logging.ERROR)
    except (ValueError, RuntimeError, OSError) as error:
        raise _unreachable(address, str(error).strip().partition("\n")[0]) from error


def _unreachable(address: str, why: str) -> RefusedError:
    return RefusedError(
        f"can't join a Ray cluster at {address}: {why.rstrip('.')}. Give the host:port that `ray start --head` "
        "printed as --address or RAY_ADDRESS, with RAY_AUTH_MODE=token if it asks for a token; or neither, to run on "
        "this machine."
    )


def _package_env() -> dict[str, Any]:
    """The runtime environment that copies the package of the driver to every node.

    A job submitted with its own `py_modules` keeps them: Ray refuses two such lists.
    """
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    return {} if "py_modules" in job else {"py_modules": [str(Path(__file__).parents[2])]}
