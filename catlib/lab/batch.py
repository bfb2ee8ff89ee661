"""Many runs: notebooks executed by papermill, their HTML pages, and the commands behind the Makefile.

    python -m catlib.lab.batch run --dataset digits     # the notebook series, its pages, the table
    python -m catlib.lab.batch course                   # the executed series as a site to publish
    python -m catlib.lab.batch refresh                  # the committed notebooks, executed anew
    python -m catlib.lab.batch study --profile smoke    # the paper-scale study

papermill runs a notebook happily with a misspelt parameter, without a time limit and in whatever folder
it was started from. `execute` is the one way in which notebooks are executed here, and it is stricter.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ..data import ROOT, data_root
from .site import write_course_map, write_site


def execute(notebook, output, parameters=None, timeout=3600, kernel="python3", environment=None):
    """Execute `notebook` with `parameters` and write it, whole or not at all, to `output`.

    The kernel runs in the notebook's folder, as in JupyterLab, with CATLIB_HEADLESS=1 (a panel then trains
    in the foreground) and CATLIB_DATA absolute. Neither this process's folder nor its environment changes,
    so several threads may each execute a notebook.

    Args:
        notebook, output: paths; the folder of `output` is made. What a failed run had done so far is
            left beside it, as `<name>.failed.ipynb`.
        parameters: new values for names in the notebook's `parameters` cell: None, bool, int, float, str,
            lists and dicts of them; tuples become lists, numpy scalars become Python numbers.
        timeout: seconds that one cell may take.
        kernel: name of the Jupyter kernel.
        environment: further environment variables for the kernel, such as CUDA_VISIBLE_DEVICES.

    Returns:
        The executed notebook, as an nbformat node.

    Raises:
        ValueError: no usable `parameters` cell (see `parameter_names`), or a parameter that it does not have.
        TypeError: a value that papermill cannot write into a notebook as a literal.
        papermill.PapermillExecutionError: a cell raised.
        nbclient.exceptions.CellTimeoutError, DeadKernelError: a cell took too long, or its kernel died.
    """
    import nbformat
    import papermill
    from jupyter_client import AsyncKernelManager

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
    headless = {"CATLIB_HEADLESS": "1", "CATLIB_DATA": str(_data_folder())}
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
            extra_arguments=[
                "--log-level=CRITICAL"
            ],  # ipykernel's remarks on stderr frighten people
        )
    except Exception:
        if unfinished.exists():
            os.replace(unfinished, failed)
        raise
    executed.metadata.pop("widgets", None)  # megabytes, and of no use without the kernel
    nbformat.write(executed, unfinished)
    os.replace(unfinished, output)
    return executed


def refresh(notebooks=None, timeout=600) -> None:
    """Execute notebooks with their defaults and write them back as they are committed: no trace of where or by what.

    The README's map of the course is renewed from them.

    Args:
        notebooks: paths; None is the series, then its worked solutions.
    """
    import nbformat

    for path in notebooks or [
        *_series(),
        *sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb")),
    ]:
        node = execute(path, ROOT / "runs" / "refresh" / Path(path).name, timeout=timeout)
        node.metadata.pop("papermill", None)
        for cell in node.cells:
            for key in ("papermill", "execution", "tags"):
                if key != "tags" or cell.metadata.get("tags") == []:
                    cell.metadata.pop(key, None)
        nbformat.write(node, path)
        print(f"{Path(path).name}: refreshed", flush=True)
    write_course_map(_series())


def parameter_names(notebook) -> list[str]:
    """The names assigned in the notebook's `parameters` cell.

    Raises:
        ValueError: there is no cell with the tag `parameters` (papermill would put the new values above the
            defaults, which then win), or one of its values is computed from a name (it would keep following
            the default).
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
        if any(isinstance(node, ast.Name) for node in ast.walk(statement.value)):
            raise ValueError(f"{Path(notebook).name}: not a literal: {ast.unparse(statement)}")
    return names


def _literal(name, value):
    if getattr(value, "shape", None) == ():
        value = value.item()  # a numpy scalar or a tensor of no dimensions
    if isinstance(value, (list, tuple)):
        return [
            _literal(name, element) for element in value
        ]  # papermill turns a tuple into a string
    if isinstance(value, dict) and all(
        type(key) is str for key in value
    ):  # and other keys into strings
        return {key: _literal(name, element) for key, element in value.items()}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(
        f"parameter {name!r}: {value!r} is a {type(value).__name__}, which no notebook can be given; "
        "allowed are None, bool, int, float, str, and lists and str-keyed dicts of them"
    )


def _data_folder() -> Path:
    """Where kernels find data: as everywhere in catlib, or in a folder `shared/data` beside the clone."""
    beside = ROOT.parent / "shared" / "data"
    usual = data_root()
    return beside if beside.is_dir() and not usual.is_dir() else usual


def run_series(dataset="digits", out="runs", *, timeout=3600, workers=2) -> list[str]:
    """Execute the notebooks 00, 01, ... on `dataset` into `out/<dataset>`, and print what came of it.

    `dataset` and `output_dir` go to the notebooks that have such a parameter. A notebook that fails is
    reported and the others go on.

    Args:
        workers: notebooks executed at a time; the cores are shared out among them.

    Returns:
        The names of the notebooks that failed.
    """
    notebooks = _series()
    folder = Path(out).resolve() / dataset
    table = folder / "table.csv"
    table.unlink(missing_ok=True)  # so that what is printed below comes from this run
    values = {"dataset": dataset, "output_dir": str(folder)}
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    failures = []
    run = partial(_run_one, folder=folder, values=values, timeout=timeout, threads=threads)
    pool = ThreadPoolExecutor(workers)
    try:
        for notebook, (seconds, problem) in zip(notebooks, pool.map(run, notebooks), strict=True):
            print(f"{notebook.stem:<32}{seconds:5.0f} s  {problem or 'ok'}", flush=True)
            if problem:
                failures.append(notebook.stem)
    finally:
        pool.shutdown(
            wait=False, cancel_futures=True
        )  # on Ctrl-C the notebooks still queued are dropped

    write_site(
        [folder / notebook.name for notebook in notebooks if notebook.stem not in failures], folder
    )
    if table.exists():
        import pandas

        print(
            f"\nAT against CAT on {dataset}\n{pandas.read_csv(table, comment='#').to_string(index=False, na_rep='')}"
        )
    print(f"\nRead: {folder / 'index.html'}   (tables and records lie beside it)")
    return failures


def _series() -> list[Path]:
    notebooks = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        raise FileNotFoundError(
            f"no notebooks in {ROOT / 'notebooks'}: install the clone with `pip install -e`"
        )
    return notebooks


def _run_one(notebook, folder, values, timeout, threads) -> tuple[float, str | None]:
    """The seconds taken, and what went wrong in words."""
    from papermill import PapermillExecutionError

    started, problem, output = time.perf_counter(), None, folder / notebook.name
    try:
        allowed = parameter_names(notebook)
        parameters = {name: values[name] for name in values if name in allowed}
        execute(
            notebook,
            folder / notebook.name,
            parameters,
            timeout,
            environment={"OMP_NUM_THREADS": threads},
        )
    except PapermillExecutionError as error:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        line = re.search(
            r"^-+> *(\d+ .*)", plain, re.M
        )  # the line of the cell that the traceback points at
        problem = f"FAILED in cell [{error.exec_count}], line {line[1] if line else '?'}"
        problem += f"\n    {error.ename}: {error.evalue}"
        problem += f"\n    see {output.with_suffix('.failed.ipynb')}"
    except Exception as error:  # a dead kernel, a time limit, a refused parameter
        problem = f"FAILED  {type(error).__name__}: {error}"
    return time.perf_counter() - started, problem


def build_course(dataset="digits", out="runs") -> list[str]:
    """Write the series as executed on `dataset` to `out/course`; execute it first where that is missing.

    Returns:
        The names of the notebooks that failed.
    """
    executed = [Path(out) / dataset / notebook.name for notebook in _series()]
    failures = [] if all(path.exists() for path in executed) else run_series(dataset, out)
    write_site([path for path in executed if path.exists()], Path(out) / "course")
    print(f"Read: {(Path(out) / 'course' / 'index.html').resolve()}")
    return failures


def main(arguments=None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m catlib.lab.batch", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("run", "execute the notebook series"), ("course", "build the site")):
        command = commands.add_parser(name, help=text)
        command.add_argument(
            "--dataset", default="digits", help="digits, mnist, fashion_mnist or cifar10"
        )
        command.add_argument("--out", default="runs", help="folder for what is made")
    command = commands.add_parser("refresh", help="execute the committed notebooks anew, in place")
    command.add_argument("notebooks", nargs="*", type=Path, help="default: all of them")
    commands.add_parser(
        "study", help="the paper-scale study; takes the options of catlib.lab.study", add_help=False
    )
    options, rest = parser.parse_known_args(arguments)
    if options.command == "study":
        from catlib.lab.study import main as study

        return study(rest)
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if options.command == "refresh":
        return refresh(options.notebooks)
    work = run_series if options.command == "run" else build_course
    try:
        return 1 if work(options.dataset, options.out) else 0
    except KeyboardInterrupt:
        os._exit(130)  # the threads would wait for their notebooks; a kernel ends with its parent


if __name__ == "__main__":
    sys.exit(main())
