"""One engine for many jobs: here, in threads, or in processes that may be killed at any moment.

A job is done at least once and counted once: it is handed out again when its process is killed, so
whatever a job writes must be written whole, and done again it must come out the same.
"""

import errno
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from ...files import write_whole

ATTEMPTS = 5  # how often a job is handed out whose process is killed
MEMORY = 1.5 * 2**30  # bytes that one process of a small run may need
NAMED = 4  # so many running jobs, at most, are named in a line
SPAWN = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
_OF_THIS_THREAD = threading.local()


class Job(Protocol):
    """Something to run: a value that can be sent to another process."""

    @property
    def name(self) -> str:
        """How people tell it from the others."""

    @property
    def error_file(self) -> Path:
        """Where its error is written if it fails; a later success removes it."""

    @property
    def cost(self) -> float | None:
        """How long it takes beside the others, in any unit; None if nobody knows."""

    def run(self) -> str | None:
        """Run to the end; the word for how it ended, None is "done"."""


class Pause(Exception):
    """Raised by a job that stops early, saved; run again, it goes on. No further job is begun."""


class Failure(Exception):
    """Raised by a job that failed, with all that people need to know; no traceback is kept."""


@dataclass(frozen=True)
class Result:
    """How a job ended.

    Attributes:
        outcome: "done" or the job's own word, "paused" or "failed".
        error: what went wrong, if it failed.
        details: the traceback.
    """

    job: Job
    outcome: str
    seconds: float = 0.0
    error: str = ""
    details: str = ""

    @property
    def failed(self) -> bool:
        return self.outcome == "failed"


def attempt(job: Job) -> Result:
    """Run a job in this process; what it raises becomes its result."""
    started = time.perf_counter()
    error = ""
    details = ""
    try:
        outcome = job.run() or "done"
    except Pause:
        outcome = "paused"
    except Failure as problem:
        outcome = "failed"
        error = str(problem)
    except Exception as problem:
        outcome = "failed"
        error = f"{type(problem).__name__}: {problem}"
        details = traceback.format_exc()
    if outcome == "failed" and speaks_of_a_full_disk(error):
        error += f"\n    {full_disk(job.error_file.parent)}"
    return Result(job, outcome, time.perf_counter() - started, error, details)


def speaks_of_a_full_disk(error: str) -> bool:
    """Whether this is the error of a full disk, of Python or of torch.save, which has its own."""
    of_the_system = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
    of_torch = ("PytorchStreamWriter failed", "unexpected pos")
    return any(words in error for words in of_the_system + of_torch)


def full_disk(folder: Path) -> str:
    """What to do about a disk that is full."""
    return f"the disk of {folder} is full: make room there, and the same command goes on"


def killed_too_often(job: Job) -> Result:
    """The result of a job that has lost its process :data:`ATTEMPTS` times."""
    error = (
        f"its process was killed {ATTEMPTS} times; "
        "memory may have run out: try fewer workers on a machine"
    )
    return Result(job, "failed", error=error)


def stopped_at_limit(job: Job, seconds: float, limit: float) -> Result:
    """The result of a job that took too long."""
    error = f"it was stopped at its limit of {limit:g} s; give it more with --limit"
    return Result(job, "failed", seconds, error)


# ------------------------------------------------------------------ where jobs run


class Where(Protocol):
    """Where jobs run: in this process, in its threads, in several processes, or on a cluster."""

    @property
    def count(self) -> int:
        """How many run at a time."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End what still runs."""

    def run(self, jobs: Iterable[Job], started: Callable[[Job], None]) -> Iterator[Result]:
        """The results, in the order in which jobs end.

        Args:
            started: called with each job when it is handed out.
        """


class ThisProcess:
    """Jobs one after another, here."""

    count = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, jobs: Iterable[Job], started: Callable[[Job], None]) -> Iterator[Result]:
        for job in jobs:
            started(job)
            result = attempt(job)
            yield result
            if result.outcome == "paused":
                return


class Threads:
    """Jobs in several threads of this process, for jobs that only wait for a process of their own.

    A notebook is one: its kernel does the work. In :class:`Processes` torch would be in memory once
    more for each.

    Args:
        count: of threads.
        stop: ends the processes that jobs wait for, and may be called again.
    """

    def __init__(self, count: int, stop: Callable[[], None]) -> None:
        self.count = count
        self.stop = stop

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, jobs: Iterable[Job], started: Callable[[Job], None]) -> Iterator[Result]:
        """The results, in the order in which jobs end."""
        waiting = deque(jobs)
        working: set[futures.Future[Result]] = set()
        slots = itertools.count()
        with futures.ThreadPoolExecutor(
            self.count, initializer=begin_thread, initargs=(slots,)
        ) as pool:
            try:
                while waiting or working:
                    while waiting and len(working) < self.count:
                        started(waiting[0])
                        working.add(pool.submit(attempt, waiting.popleft()))
                    ended, working = futures.wait(working, return_when=futures.FIRST_COMPLETED)
                    for one in ended:
                        yield one.result()
            finally:  # after Ctrl-C some still work; one may be about to start its process
                while working:
                    self.stop()
                    working = futures.wait(working, timeout=1).not_done


def begin_thread(slots: Iterator[int]) -> None:
    _OF_THIS_THREAD.surroundings = surroundings(next(slots))


def surroundings_of_this_thread() -> dict[str, str]:
    """What :class:`Threads` adds to the environment of the processes that a job starts."""
    return getattr(_OF_THIS_THREAD, "surroundings", {})


class Processes:
    """Jobs in several processes of this machine, each one at a time.

    A process that is killed costs nothing but time: its job is handed out again, to a new process.

    Args:
        count: of processes.
        limit: seconds after which a job is stopped and has failed.
    """

    def __init__(self, count: int, *, limit: float | None = None) -> None:
        self.count = count
        self.limit = limit
        self.workers: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.end()
        self.workers = []

    def run(self, jobs: Iterable[Job], started: Callable[[Job], None]) -> Iterator[Result]:
        """The results, in the order in which jobs end."""
        waiting = deque((job, 1) for job in jobs)
        while waiting or self._busy():
            while waiting and len(self._busy()) < self.count:
                job, number = waiting.popleft()
                if self._idle_worker().give(job, number):
                    started(job)
                else:  # it was killed while it had nothing to do
                    waiting.appendleft((job, number))
            for worker in self._ready():
                result = worker.result(self.limit)
                if result:
                    if result.outcome == "paused":  # the others in work pause by themselves
                        waiting.clear()
                    yield result
                elif worker.number < ATTEMPTS:
                    waiting.append((worker.last, worker.number + 1))
                else:
                    yield killed_too_often(worker.last)

    def _busy(self) -> list["Worker"]:
        return [worker for worker in self.workers if worker.busy]

    def _idle_worker(self) -> "Worker":
        self.workers = [worker for worker in self.workers if worker.process.is_alive()]
        for worker in self.workers:
            if not worker.busy:
                return worker
        taken = {worker.slot for worker in self.workers}
        slot = next(number for number in range(self.count) if number not in taken)
        self.workers.append(Worker(slot))
        return self.workers[-1]

    def _ready(self) -> list["Worker"]:
        """The busy workers that have a result, are dead, or are beyond the limit; waits for one."""
        busy = self._busy()
        signs = [sign for worker in busy for sign in (worker.connection, worker.process.sentinel)]
        wait(signs, timeout=None if self.limit is None else 0.2)
        return [worker for worker in busy if worker.ready(self.limit)]


class Worker:
    """One process and the job that it has."""

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.connection, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=serve, args=(theirs,), daemon=True)
        with environment(surroundings(slot)):
            self.process.start()
        theirs.close()
        self.busy = False
        self.number = 0
        self.message: Result | None = None

    def give(self, job: Job, number: int) -> bool:
        """Hand over a job, for the ``number``-th time; False if the process is dead."""
        try:
            self.connection.send(job)
        except OSError:
            return False
        self.last = job
        self.number = number
        self.busy = True
        self.message = None
        self.started = float("inf")  # a new process has to import things before it begins
        return True

    def late(self, limit: float | None) -> bool:
        return limit is not None and time.monotonic() - self.started > limit

    def ready(self, limit: float | None) -> bool:
        """Whether it has a result, is dead, or has taken too long."""
        try:
            while self.message is None and self.connection.poll():
                self.message = self.connection.recv()
                if self.message is None:  # the sign that it has begun
                    self.started = time.monotonic()
        except (EOFError, OSError):
            return True
        return self.message is not None or not self.process.is_alive() or self.late(limit)

    def result(self, limit: float | None) -> Result | None:
        """The result of a worker that is ready; None if its process was killed."""
        self.busy = False
        if self.message is None and limit is not None and self.late(limit):
            self.process.terminate()
            seconds = time.monotonic() - self.started
            self.message = stopped_at_limit(self.last, seconds, limit)
            self.end()
        elif self.message is None:
            self.end()
        return self.message

    def end(self) -> None:
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


def serve(connection: Connection) -> None:
    """What a worker's process does: run the jobs that it is sent, until nobody sends any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process tells when to end
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    threading.Thread(target=end_with_parent, daemon=True).start()
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(None)  # it has begun
        connection.send(attempt(job))


def end_with_parent() -> None:
    """End this process when the first one dies, lest a restart gives its job to another, too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def surroundings(slot: int) -> dict[str, str]:
    """Environment of a worker: one thread, as many results depend on their number; its own GPU."""
    variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    gpus = gpu_count()
    if gpus > 1:
        # those that this process may use, as a scheduler names them, or all by their numbers
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = [name.strip() for name in visible.split(",")] if visible else range(gpus)
        variables["CUDA_VISIBLE_DEVICES"] = str(names[slot % gpus])
    return variables


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """This process's environment with some variables changed, for a process started within."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def gpu_count() -> int:
    import torch

    return torch.cuda.device_count()


def free_memory() -> int | None:
    """Bytes of this machine's memory that are free; None where nothing can tell, without psutil."""
    try:
        import psutil
    except ModuleNotFoundError:  # it comes with catlib, but a machine that only trains may lack it
        return None
    return int(psutil.virtual_memory().available)


def workers_that_fit() -> int:
    """One for each GPU; without one, as many as cores and free memory allow."""
    if gpu_count():
        return gpu_count()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    free = free_memory()
    fit = cores or 1
    if free is not None:
        fit = min(fit, int(free // MEMORY))
    return max(1, fit)


# ------------------------------------------------------------------ running and showing


def run_jobs(
    jobs: Sequence[Job],
    where: Where,
    after: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Run the jobs, show how they go, and keep the error of each that fails beside its output.

    Args:
        jobs: such as :func:`units_for` makes.
        where: they run, as :class:`Processes`.
        after: called with each result when it comes.
    """
    results = []
    with Progress(jobs, where) as progress:
        for result in where.run(jobs, progress.started):
            note_error(result)
            progress.finished(result)
            results.append(result)
            if after:
                after(result)
    return results


def note_error(result: Result) -> None:
    path = result.job.error_file
    try:
        if result.failed:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, f"{result.error}\n\n{result.details}".encode())
        else:
            path.unlink(missing_ok=True)
    except OSError as error:  # a full disk, a read-only folder: the others go on
        print(f"{path} could not be written: {error}", file=sys.stderr)


def bar_of(total: int) -> Any:
    """A bar for a terminal."""
    from tqdm import tqdm  # a machine for training may lack it, and has no terminal

    form = "{n_fmt}/{total_fmt} |{bar:20}| {desc}"
    return tqdm(total=total, bar_format=form, leave=False, dynamic_ncols=True)


class Progress:
    """A line for every job that ends; on a terminal also a bar with what is running."""

    def __init__(self, jobs: Sequence[Job], where: Where) -> None:
        self.total = len(jobs)
        self.where = where
        self.costs = costs_of(jobs)
        self.running: dict[str, float] = {}  # when each was handed out, by its name
        self.done: dict[str, float] = {}  # how many seconds each took
        self.failed = 0
        self.over = threading.Event()
        self.clock = threading.Thread(target=self._tick, daemon=True)
        self.bar: Any = bar_of(self.total) if sys.stderr.isatty() else None

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.clock.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.over.set()
            self.clock.join()
            self.bar.close()

    def started(self, job: Job) -> None:
        self.running.setdefault(job.name, time.monotonic())
        if self.bar is not None:
            self.bar.set_description_str(self.state())
        elif not self.done:  # later lines name what is running
            print(f"{0:>4}/{self.total}  begun             {job.name}", flush=True)

    def finished(self, result: Result) -> None:
        self.running.pop(result.job.name)
        self.done[result.job.name] = result.seconds
        self.failed += result.failed
        line = f"{len(self.done):>4}/{self.total}  {result.outcome:<8}"
        line += f"{result.seconds:6.0f} s  {result.job.name}"
        if self.bar is None:
            line += f"   ({self.state()})"
        if result.failed:
            line += f"\n    {result.error}"
        if self.bar is None:
            print(line, flush=True)
            return
        self.bar.write(line, file=sys.stdout)  # above the bar
        sys.stdout.flush()
        self.bar.update()
        self.bar.set_description_str(self.state())

    def _tick(self) -> None:
        """Keep the time left up to date while no job begins or ends."""
        while not self.over.wait(1):
            self.bar.set_description_str(self.state())

    def state(self) -> str:
        parts = [f"{self.failed} failed"]
        if self.done and len(self.done) < self.total:
            left = self.seconds_left()
            # what runs has taken longer than was thought: for how much longer, nobody can know
            known = round(left) > 0
            parts.append(f"about {in_words(left)} left" if known else "nearly done")
        running = list(self.running)  # a copy, as another thread asks too
        parts.append(f"{len(running)} running")
        if 0 < len(running) <= NAMED:
            parts[-1] += f": {', '.join(running)}"
        return ", ".join(parts)

    def seconds_left(self) -> float:
        """An estimate, from what a unit of cost has taken so far."""
        done = dict(self.done)
        pace = sum(done.values()) / sum(self.costs[name] for name in done)
        work = pace * sum(cost for name, cost in self.costs.items() if name not in done)
        for name, since in list(self.running.items()):
            work -= min(time.monotonic() - since, pace * self.costs[name])
        return work / self.where.count


def costs_of(jobs: Sequence[Job]) -> dict[str, float]:
    """The cost of each job by its name; one that is not known is taken for the mean of the others.

    A cost is more than 0.
    """
    known = [job.cost for job in jobs if job.cost]
    mean = sum(known) / len(known) if known else 1.0
    return {job.name: job.cost or mean for job in jobs}


def in_words(seconds: float) -> str:
    """A time to wait, such as "3 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
