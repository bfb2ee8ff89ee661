"""Notebooks executed by papermill, strictly: what papermill would accept in silence is refused.

papermill runs a notebook happily with a misspelt parameter, without a time limit and in whatever
folder it was started from. `execute` is the one way in which notebooks are executed here.
"""

import ast
import os
import re
from pathlib import Path
from typing import Any
from weakref import WeakSet

from ...data import data_root
from ...files import write_whole
from ..paths import NOTEBOOKS, ROOT, SOLUTIONS
from .parameters import Parameter, comments_in, kinds_of, unknown_name

_KERNELS: WeakSet[Any] = WeakSet()  # jupyter_client's managers of those that run here


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
        papermill.PapermillExecutionError: a cell raised.
        nbclient.exceptions.CellTimeoutError: a cell took too long.
        nbclient.exceptions.DeadKernelError: the kernel died.
    """
    import papermill
    from jupyter_client.manager import AsyncKernelManager

    notebook = Path(notebook).resolve()
    output = Path(output).resolve()
    allowed = parameter_names(notebook) if parameters else []
    for name in parameters or {}:
        if name not in allowed:
            raise ValueError(unknown_name(notebook.name, name, allowed))
    literals = {name: _literal(name, value) for name, value in (parameters or {}).items()}
    headless = {"CATLIB_HEADLESS": "1", "CATLIB_DATA": str(data_root())}
    variables = dict(os.environ) | headless | (environment or {})

    class Kernel(AsyncKernelManager):
        def start_kernel(self, **options):
            _KERNELS.add(self)
            return super().start_kernel(env=variables, **options)

    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.stem}.part.ipynb")
    failed = output.with_suffix(".failed.ipynb")
    failed.unlink(missing_ok=True)
    try:
        executed = papermill.execute_notebook(
            _without_fields(notebook),
            _without_fields(unfinished),
            literals,
            kernel_name=kernel,
            language="python",  # some notebooks name their kernel, but not its language
            progress_bar=False,
            execution_timeout=timeout,
            kernel_manager_class=Kernel,
            resources={"metadata": {"path": str(notebook.parent)}},  # where the kernel starts
            # ipykernel reports its normal shutdown on stderr as if it were an error
            extra_arguments=["--log-level=CRITICAL"],
        )
        executed.metadata.pop("widgets", None)  # megabytes, and of no use without the kernel
        write_notebook(executed, output)
    except Exception:
        if unfinished.exists():
            os.replace(unfinished, failed)
        raise
    finally:
        unfinished.unlink(missing_ok=True)
    return executed


def end_kernels() -> None:
    """Kill the kernels of the notebooks that this process executes; their execution then fails."""
    for kernel in list(_KERNELS):
        process = getattr(kernel.provisioner, "process", None)  # None before it has begun
        if process is not None:
            process.kill()


def _without_fields(path: Path) -> str:
    """A path for papermill, which takes it for a format string: braces would be filled in."""
    return str(path).replace("{", "{{").replace("}", "}}")


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
    """The names assigned in the notebook's `parameters` cell; raises as `parameters_of` does."""
    return list(parameters_of(notebook))


def parameters_of(notebook) -> dict[str, Parameter]:
    """What the notebook's `parameters` cell assigns: name, default and the types that fit.

    The types are those of an annotation (`alpha: float = 0.5`), else that of the default; any value
    fits a parameter without an annotation that is None by default. Imports from `typing` may stand
    in the cell, as annotations need them.

    Raises:
        ValueError: there is no such notebook, or it has no cell with the tag `parameters`
            (papermill would put the new values above the defaults, which then win), or one of its
            values is computed from a name (it would keep following the default).
    """
    import nbformat

    path = Path(notebook)
    if not path.is_file():
        raise ValueError(f"there is no notebook {path}; give the path of an .ipynb file")
    try:
        cells = nbformat.read(path, as_version=4).cells
    except Exception as error:  # JSON, nbformat's schema, the encoding
        raise ValueError(f"{path.name} is not a notebook that can be read: {error}") from error
    cell = next((c for c in cells if "parameters" in c.metadata.get("tags", [])), None)
    if cell is None:
        raise ValueError(
            f"{path.name} has no cell with the tag 'parameters'; "
            "give that tag to the cell that assigns the defaults"
        )
    meanings = comments_in(cell.source)
    found = {}
    for statement in ast.parse(cell.source).body:
        match statement:
            case ast.ImportFrom(module="typing"):
                continue
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                annotation = None
            case ast.AnnAssign(target=ast.Name(id=name), value=value, annotation=annotation):
                pass
            case _:
                raise ValueError(f"{path.name}: not `name = literal`: {ast.unparse(statement)}")
        try:
            default = ast.literal_eval(value) if value else None
        except ValueError:
            value = None
        if value is None:
            raise ValueError(f"{path.name}: not a literal: {ast.unparse(statement)}")
        found[name] = Parameter(
            name, default, kinds_of(default, annotation), meanings.get(name, "")
        )
    return found


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


def code_in(notebook) -> str:
    """The code of a notebook, without its outputs and its text."""
    import nbformat

    cells = nbformat.read(notebook, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def course_notebooks() -> list[Path]:
    """The notebooks of the course, in reading order."""
    notebooks = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        raise FileNotFoundError(
            f"no notebooks in {NOTEBOOKS}: install the clone with `pip install -e .`"
        )
    return notebooks


def failure_in_words(error: Exception, output: Path) -> str:
    """Where a notebook failed and why, for someone who will open what it left.

    Args:
        error: what `execute` raised.
        output: where the executed notebook would be.
    """
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill import PapermillExecutionError

    see = f"\n    see {output.with_suffix('.failed.ipynb')}"
    if isinstance(error, PapermillExecutionError):
        traceback = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        where = f"in cell [{error.exec_count}]"
        line = line_of_cell(traceback)
        if line:
            where += f", line {line}"
        return f"{where}\n    {error.ename}: {error.evalue}{see}"
    if isinstance(error, CellTimeoutError):
        return f"a cell took longer than its limit; give it more time with --cell-timeout{see}"
    if isinstance(error, DeadKernelError):
        return f"the kernel died, as it does when memory runs out; try fewer --workers{see}"
    return f"{type(error).__name__}: {error}"


def line_of_cell(traceback: str) -> str | None:
    """The line of the cell itself, with its number, at which a plain IPython traceback points."""
    frames = re.split(r"^(?=Cell In\s*\[|File )", traceback, flags=re.MULTILINE)
    for frame in frames:
        if frame.startswith("Cell In"):
            found = re.search(r"^-+> *(\d+ .*)", frame, re.MULTILINE)
            if found:
                return found[1]
    return None
