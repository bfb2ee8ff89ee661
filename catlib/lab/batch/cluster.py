"""Jobs on the workers of a Dask cluster: the same jobs, counted in the same way, as in processes.

A worker gets one job at a time, and the job is sent to that worker alone. So it is known here which
worker has which job, and how often a job has lost its worker; Dask, left to itself, sends a job on
to other workers and gives it up after a number of its own.
"""

import os
import queue
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import torch

from ...files import write_whole
from ..sources import CATLIB, differing
from .engine import ATTEMPTS, Failure, Job, Result, attempt, killed_too_often, stopped_at_limit

CONNECT = 10  # seconds that a scheduler may take to answer
LOOK = 0.5  # seconds after which the workers are counted again
PATIENCE = 5  # seconds without a worker after which people are told
FETCH = 30  # seconds that a result may take from its worker to here
RESTART = 30  # seconds that a worker may take to come back


def dask_distributed() -> ModuleType:
    """The package dask.distributed.

    Raises: ValueError: it is not installed.
    """
    try:
        import distributed
    except ImportError as error:
        raise ValueError(
            "a Dask scheduler needs the package dask.distributed, which is not installed here; "
            'install it in the clone with: pip install -c constraints.txt -e ".[cluster]"'
        ) from error
    return distributed


@dataclass
class Task:
    """A job that a worker has, or the question whether the worker can be used (no job)."""

    address: str  # of the worker
    future: Any
    job: Job | None = None
    number: int = 0  # how often the job has been handed out
    sent: float = field(default_factory=time.monotonic)


class Cluster:
    """Jobs on the workers of a Dask scheduler, those that come later too.

    Every worker is asked once whether it runs the same code and sees the same folder; one that does
    not is left out. A worker that is lost costs nothing but time: its job is sent to another.

    Args:
        address: of the scheduler, such as tcp://10.0.0.1:8786.
        folder: where the output goes, which every worker must see at the same path.
        limit: seconds after which a job is stopped, with its worker, and has failed.

    Raises: ValueError: dask.distributed is not installed.
    """

    def __init__(self, address: str, folder: Path, *, limit: float | None = None) -> None:
        dask_distributed()
        self.address = address
        self.limit = limit
        self.witness = folder.resolve() / f".seen-by-workers-{secrets.token_hex(4)}"
        self.usable: set[str] = set()  # addresses of workers, by what they answered
        self.refused: dict[str, str] = {}  # what is wrong with a worker, by its address
        self.tasks: list[Task] = []
        self.signs: queue.SimpleQueue = queue.SimpleQueue()  # one whenever a future ends
        self.alone_since: float | None = time.monotonic()

    @property
    def count(self) -> int:
        """How many workers can be used now, at least 1."""
        return max(1, len(self.usable))

    def __enter__(self) -> Self:
        """Raises: ValueError: no scheduler answers at the address."""
        distributed = dask_distributed()
        try:
            self.client = distributed.Client(self.address, timeout=CONNECT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"no Dask scheduler answers at {self.address} ({error}); start one with: "
                "dask scheduler, which prints its address, such as tcp://10.0.0.1:8786"
            ) from error
        self.witness.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.witness, b"")
        return self

    def __exit__(self, *_: object) -> None:
        """End the jobs that are left; the workers stay, new processes beneath their nannies."""
        try:
            busy = [task for task in self.tasks if task.job]
            for task in self.tasks:
                task.future.cancel()
            self.tasks = []
            self._restart([task.address for task in busy])
        except OSError:  # the scheduler has gone
            pass
        finally:
            self.witness.unlink(missing_ok=True)
            self.client.close()

    def run(self, jobs: Iterable[Job], started: Callable[[Job], None]) -> Iterator[Result]:
        """The results, in the order in which jobs end.

        Raises:
            Failure: the scheduler has gone.
            ValueError: there are workers, and none of them can be used.
        """
        waiting = deque((job, 1) for job in jobs)
        while waiting or self._running():
            present = self._present()
            self._ask_new(present)
            for address in self._idle():
                if waiting:
                    job, number = waiting.popleft()
                    self._send(job, number, address)
                    started(job)
            self._wait()
            for task in self._ended(self._present()):
                if task.job is None:
                    self._note_answer(task)
                    continue
                result = self._result(task)
                if result:
                    if result.outcome == "paused":  # the others in work pause by themselves
                        waiting.clear()
                    yield result
                elif task.number < ATTEMPTS:
                    waiting.append((task.job, task.number + 1))
                else:
                    yield killed_too_often(task.job)

    # -------------------------------------------------------------- the workers

    def _present(self) -> set[str]:
        """The addresses of the workers that the scheduler has."""
        if self.client.status != "running":
            raise self._gone()
        try:
            present = set(self.client.nthreads())
        except OSError as error:
            raise self._gone() from error
        self.usable &= present
        return present

    def _gone(self) -> Failure:
        return Failure(
            f"the Dask scheduler at {self.address} has gone. What is done is kept; "
            "start a scheduler and workers again, and the same command goes on"
        )

    def _ask_new(self, present: set[str]) -> None:
        """Ask the workers that are not known yet; a worker that is busy answers when it is free."""
        asked = {task.address for task in self.tasks}
        for address in present - self.usable - set(self.refused) - asked:
            self._submit(Task(address, None), examine, self.witness, CATLIB, torch.__version__)
        if present:
            self.alone_since = None
        elif self.alone_since is None:
            self.alone_since = time.monotonic()
        elif time.monotonic() - self.alone_since > PATIENCE:
            self.alone_since = float("inf")  # say it once
            print(
                f"{self.address} has no worker; waiting for one. Start it on any machine with: "
                f"dask worker {self.address} --nthreads 1",
                file=sys.stderr,
            )

    def _note_answer(self, task: Task) -> None:
        """What a worker that was asked has answered."""
        try:
            problem = task.future.result(timeout=FETCH)
        except TimeoutError:  # it has gone
            return
        except Exception as error:
            problem = f"{type(error).__name__}: {error}; install the same catlib there"
        if not problem:
            self.usable.add(task.address)
            return
        self.refused[task.address] = problem
        print(f"the worker {task.address} is left out: {problem}", file=sys.stderr)
        if not self.usable and not self.tasks:
            raise ValueError(f"no worker of {self.address} can be used: {problem}")

    def _idle(self) -> list[str]:
        busy = {task.address for task in self.tasks}
        return sorted(self.usable - busy)

    def _restart(self, addresses: list[str]) -> None:
        """End what workers are doing: a thread cannot be stopped, but its process can."""
        for address in addresses:
            self.usable.discard(address)
            try:
                self.client.restart_workers([address], timeout=RESTART, raise_for_error=False)
            except (ValueError, KeyError, TimeoutError):
                print(
                    f"the worker {address} could not be restarted (was it started with "
                    "--no-nanny?); it goes on with its run to the end",
                    file=sys.stderr,
                )

    # -------------------------------------------------------------- the jobs

    def _running(self) -> bool:
        return any(task.job for task in self.tasks)

    def _send(self, job: Job, number: int, address: str) -> None:
        self._submit(Task(address, None, job, number), perform, job)

    def _submit(self, task: Task, function: Callable, *arguments: object) -> None:
        called = task.job.name if task.job else "examine"
        task.future = self.client.submit(
            function,
            *arguments,
            key=f"{called} {secrets.token_hex(8)}",
            workers=[task.address],
            allow_other_workers=False,
            pure=False,
        )
        task.future.add_done_callback(self.signs.put)
        self.tasks.append(task)

    def _wait(self) -> None:
        """Wait until a future has ended, or for a moment."""
        try:
            self.signs.get(timeout=LOOK)
            while True:
                self.signs.get_nowait()
        except queue.Empty:
            pass

    def _ended(self, present: set[str]) -> list[Task]:
        """Take out the tasks that have a result, have lost their worker, or are late."""
        ended = [
            task
            for task in self.tasks
            if task.future.done() or task.address not in present or self._late(task)
        ]
        self.tasks = [task for task in self.tasks if task not in ended]
        return ended

    def _late(self, task: Task) -> bool:
        if self.limit is None or task.job is None:
            return False
        return time.monotonic() - task.sent > self.limit

    def _result(self, task: Task) -> Result | None:
        """The result of a task that has ended; None if its worker was lost."""
        assert task.job is not None
        seconds = time.monotonic() - task.sent
        if task.future.status == "finished":
            try:
                return task.future.result(timeout=FETCH)
            except TimeoutError:  # the worker was lost with the result
                task.future.cancel()
                return None
        if task.future.status == "error":
            error = task.future.exception(timeout=FETCH)
            if isinstance(error, dask_distributed().scheduler.KilledWorker):
                return None
            return Result(task.job, "failed", seconds, f"{type(error).__name__}: {error}")
        task.future.cancel()
        if self.limit is None or seconds <= self.limit:
            return None
        self._restart([task.address])
        return stopped_at_limit(task.job, seconds, self.limit)


# ------------------------------------------------------------------ on the worker


def examine(witness: Path, code: dict[str, str], torch_version: str) -> str:
    """What keeps this worker from doing the jobs as they are done elsewhere; "" is nothing."""
    if not witness.exists():
        return (
            f"it does not see the folder {witness.parent}; "
            "give --out a folder that all machines share"
        )
    changed = differing(code, CATLIB)
    if changed:
        return f"its catlib is another ({', '.join(changed[:5])}); install the same there"
    theirs = torch_version.partition("+")[0]
    ours = torch.__version__.partition("+")[0]
    if ours != theirs:
        return f"it has torch {ours} in place of {theirs}; install the same there"
    return ""


def perform(job: Job) -> Result:
    """Run a job in this worker, with one thread unless it was told another number."""
    if "OMP_NUM_THREADS" not in os.environ:  # a worker without a nanny
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    return attempt(job)
