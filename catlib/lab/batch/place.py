"""Where the runs of a command go: to processes on this machine, or to a Dask cluster."""

from pathlib import Path

from .cluster import Cluster, dask_distributed
from .engine import Processes, workers_that_fit
from .units import check_memory


def place(
    most: int,
    folder: Path,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    limit: float | None = None,
) -> Processes | Cluster:
    """Where ``most`` runs go, which is used as ``with place(...) as where``.

    Args:
        folder: of their output.
        workers: processes on this machine; None is as many as fit.
        scheduler: address of a Dask scheduler, in place of processes.
        limit: seconds that one run may take.

    Raises: ValueError: this machine, or this cluster, cannot be used so.
    """
    check_choice(workers, scheduler)
    if scheduler is not None:
        return Cluster(scheduler, folder, limit=limit)
    count = min(workers or workers_that_fit(), most)
    check_memory(count)
    return Processes(count, limit=limit)


def check_choice(workers: int | None, scheduler: str | None) -> None:
    """Raises: ValueError: a cluster is asked for, and cannot be used so."""
    if scheduler is None:
        return
    dask_distributed()
    if workers is not None:
        raise ValueError(
            "--workers is for processes on this machine; with --scheduler the runs go to the "
            "workers of the cluster: leave one of the two out"
        )
