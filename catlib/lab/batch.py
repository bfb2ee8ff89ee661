"""Notebooks executed by papermill, strictly: what papermill would accept in silence is refused.

papermill runs a notebook happily with a misspelt parameter, without a time limit and in whatever
folder it was started from. `execute` is the one way in which notebooks are executed here.
"""

from __future__ import annotations

import ast
import difflib
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..data import data_root
from ..files import write_whole
from .paths import NOTEBOOKS, ROOT, SOLUTIONS


def execute(notebook, output, parameters=None, timeout=3600, kernel="python3", environment=None):
    """Execute `notebook` with `parameters` and write it, whole or not at all, to `output`.

    The kernel runs in the notebook's folder, as in JupyterLab, with CATLIB_HEADLESS=1 (a panel then
    trains in the foreground) and CATLIB_DATA absolute. Neither this process's folder nor its
    environment changes, so several threads may each execute a notebook.

    Args:
        notebook, output: paths; the folder of `output` is made. What a failed run had done so far
            is left beside it, as `<name>.failed.ipynb`.
        parameters: new values for names in the notebook's `parameters` cell: None, bool, int,
            float, str, lists and dicts of them; tuples become lists, numpy scalars become Python
            numbers.
        timeout: seconds that one cell may take.
        kernel: name of the Jupyter kernel.
        environment: further environment variables for the kernel, such as CUDA_VISIBLE_DEVICES.

    Returns:
        The executed notebook, as an nbformat node.

    Raises:
        ValueError: no usable `parameters` cell (see `parameter_names`), or a parameter that it does
            not have.
        TypeError: a value that papermill cannot write into a notebook as a literal.
            papermill.PapermillExecutionError: a cell raised. nbclient.exceptions.CellTimeoutError,
            DeadKernelError: a cell took too long, or its kernel died.
    """
    import papermill
    from jupyter_client.manager import AsyncKernelManager

    notebook, output = Path(notebook).resolve(), Path(output).resolve()
    allowed = parameter_names(notebook) if parameters else []
    for name in parameters or {}:
        if name not in allowed:
            close = difflib.get_close_matches(name, allowed, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(
                f"{notebook.name} has no parameter {name!r}{hint}; it has: {', '.join(allowed)}"
            )
    literals = {name: _literal(name, value) for name, value in (parameters or {}).items()}
    headless = {"CATLIB_HEADLESS": "1", "CATLIB_DATA": str(data_root())}
    variables = dict(os.environ) | headless | (environment or {})

    class Kernel(AsyncKernelManager):
        def start_kernel(self, **options):
            return super().start_kernel(env=variables, **options)

    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.stem}.part.ipynb")
    failed = output.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    try:
        executed = papermill.execute_notebook(
            notebook,
            unfinished,
            literals,
            kernel_name=kernel,
            progress_bar=False,
            execution_timeout=timeout,
            kernel_manager_class=Kernel,
            resources={"metadata": {"path": str(notebook.parent)}},  # where the kernel starts
            # ipykernel reports its normal shutdown on stderr as if it were an error
            extra_arguments=["--log-level=CRITICAL"],
        )
    except Exception:
        if unfinished.exists():
            os.replace(unfinished, failed)
        raise
    executed.metadata.pop("widgets", None)  # megabytes, and of no use without the kernel
    write_notebook(executed, output)
    unfinished.unlink()
    return executed


def write_notebook(node, path: Path) -> None:
    """Write a notebook (nbformat node), whole or not at all."""
    import nbformat

    write_whole(path, lambda temporary: nbformat.write(node, temporary))


def refresh(notebooks=None, timeout=600) -> None:
    """Execute notebooks with their defaults and write them back, with no trace of this machine.

    Args:
        notebooks: paths; None is the series, then its worked solutions.
    """
    for path in notebooks or [*course_notebooks(), *sorted(SOLUTIONS.glob("*.ipynb"))]:
        node = execute(path, ROOT / "runs" / "refresh" / Path(path).name, timeout=timeout)
        node.metadata.pop("papermill", None)
        for cell in node.cells:
            cell.metadata.pop("papermill", None)
            cell.metadata.pop("execution", None)
            if cell.metadata.get("tags") == []:
                del cell.metadata["tags"]
        write_notebook(node, Path(path))
        print(f"{Path(path).name}: refreshed", flush=True)


def parameter_names(notebook) -> list[str]:
    """The names assigned in the notebook's `parameters` cell.

    Raises:
        ValueError: there is no cell with the tag `parameters` (papermill would put the new values
            above the defaults, which then win), or one of its values is computed from a name (it
            would keep following the default).
    """
    import nbformat

    cells = nbformat.read(notebook, as_version=4).cells
    cell = next((c for c in cells if "parameters" in c.metadata.get("tags", [])), None)
    if cell is None:
        raise ValueError(f"{Path(notebook).name} has no cell with the tag 'parameters'")
    names = []
    for statement in ast.parse(cell.source).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.append(name)
            case _:
                raise ValueError(
                    f"{Path(notebook).name}: not `name = literal`: {ast.unparse(statement)}"
                )
        value = statement.value
        if value is None or any(isinstance(node, ast.Name) for node in ast.walk(value)):
            raise ValueError(f"{Path(notebook).name}: not a literal: {ast.unparse(statement)}")
    return names


def _literal(name, value):
    if getattr(value, "shape", None) == ():
        value = value.item()  # a numpy scalar or a tensor of no dimensions
    if isinstance(value, (list, tuple)):
        # a list, as papermill turns a tuple into a string
        return [_literal(name, element) for element in value]
    # papermill turns keys that are no strings into strings, so they are refused
    if isinstance(value, dict) and all(type(key) is str for key in value):
        return {key: _literal(name, element) for key, element in value.items()}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(
        f"parameter {name!r}: {value!r} is a {type(value).__name__}, "
        "which no notebook can be given; "
        "allowed are None, bool, int, float, str, and lists and str-keyed dicts of them"
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


def run_series(dataset="digits", out="runs", *, timeout=3600, workers=2) -> Series:
    """Execute the notebooks of the course on a dataset, and print how each one ended.

    `dataset` and `output_dir` go to the notebooks that have such a parameter. A notebook that fails
    is reported and the others go on.

    Args:
        workers: notebooks executed at a time; the cores are shared out among them.
    """
    notebooks = course_notebooks()
    folder = Path(out).resolve() / dataset
    (folder / "table.csv").unlink(missing_ok=True)  # so that it is of this run, if it is there
    values = {"dataset": dataset, "output_dir": str(folder)}
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    series = Series(folder, [], [])
    run = partial(_run_one, folder=folder, values=values, timeout=timeout, threads=threads)
    pool = ThreadPoolExecutor(workers)
    try:
        for notebook, (seconds, problem) in zip(notebooks, pool.map(run, notebooks), strict=True):
            print(f"{notebook.stem:<32}{seconds:5.0f} s  {problem or 'ok'}", flush=True)
            if problem:
                series.failed.append(notebook.stem)
            else:
                series.executed.append(folder / notebook.name)
    finally:
        # on Ctrl-C the notebooks that still wait are dropped
        pool.shutdown(wait=False, cancel_futures=True)
    return series


def course_notebooks() -> list[Path]:
    """The notebooks of the course, in reading order."""
    notebooks = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        raise FileNotFoundError(
            f"no notebooks in {NOTEBOOKS}: install the clone with `pip install -e .`"
        )
    return notebooks


def _run_one(notebook, folder, values, timeout, threads) -> tuple[float, str | None]:
    """The seconds taken, and what went wrong in words."""
    from papermill import PapermillExecutionError

    started = time.perf_counter()
    problem = None
    output = folder / notebook.name
    try:
        allowed = parameter_names(notebook)
        parameters = {name: value for name, value in values.items() if name in allowed}
        execute(notebook, output, parameters, timeout, environment={"OMP_NUM_THREADS": threads})
    except PapermillExecutionError as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        # the line of the cell at which the traceback points
        line = re.search(r"^-+> *(\d+ .*)", plain, re.M)
        problem = f"FAILED in cell [{error.exec_count}], line {line[1] if line else '?'}"
        problem += f"\n    {error.ename}: {error.evalue}"
        problem += f"\n    see {output.with_suffix('.failed.ipynb')}"
    except Exception as error:  # a dead kernel, a time limit, a refused parameter
        problem = f"FAILED  {type(error).__name__}: {error}"
    return time.perf_counter() - started, problem
