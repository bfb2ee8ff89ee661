"""The notebooks of the course, executed on one dataset."""

from dataclasses import dataclass
from pathlib import Path

from .engine import Threads, run_jobs, workers_that_fit
from .notebooks import course_notebooks, end_kernels, parameter_names
from .units import (
    SeriesUnit,
    check_datasets,
    check_folder,
    check_memory,
    from_anywhere,
    inside,
)


@dataclass(frozen=True)
class Series:
    """What came of a series.

    Attributes:
        folder: of its output.
        executed: the executed notebooks there.
        failed: the names of those that failed.
    """

    folder: Path
    executed: list[Path]
    failed: list[str]


def series_folder(dataset: str, out: str | Path = "runs") -> Path:
    """Where the series on a dataset goes: a folder in ``out`` with the dataset's name.

    Raises: ValueError: the name would lead elsewhere.
    """
    return inside(Path(out).resolve(), Path(dataset).stem)


def run_series(
    dataset: str = "digits",
    out: str | Path = "runs",
    *,
    timeout: int = 3600,
    workers: int | None = None,
) -> Series:
    """Execute the notebooks of the course on a dataset, and show how each one ends.

    `dataset` and `output_dir` go to the notebooks that have such a parameter. A notebook that fails
    is reported, its error kept, and the others go on.

    Args:
        timeout: seconds that one cell may take.
        workers: notebooks executed at a time; None is as many as cores and memory allow.

    Raises: ValueError: the dataset cannot be used, nothing can be written to ``out``, or the disk
        or the memory has too little room.
    """
    check_datasets([dataset])
    folder = series_folder(dataset, out)
    values = {"dataset": from_anywhere(dataset), "output_dir": str(folder)}
    units = []
    for notebook in course_notebooks():
        names = parameter_names(notebook)
        own = {name: value for name, value in values.items() if name in names}
        units.append(SeriesUnit(notebook, own, folder, timeout))
    count = min(workers or workers_that_fit(), len(units))
    check_memory(count)
    where = Threads(count, end_kernels)
    check_folder(folder)
    (folder / "table.csv").unlink(missing_ok=True)  # so that it is of this run, if it is there
    with where:
        results = run_jobs(units, where)
    failed = {result.job.name for result in results if result.failed}
    return Series(
        folder,
        executed=[unit.output for unit in units if unit.name not in failed],
        failed=[unit.name for unit in units if unit.name in failed],
    )
