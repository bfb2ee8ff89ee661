"""Which code and data made a number: digests of the files that decide what a run computes."""

import ast
import hashlib
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import catlib
from catlib.data import CLASSES, find_data

Digests = Mapping[str, str | None]  # by the name of the file

_PACKAGE = Path(catlib.__file__).parent
# of the laboratory, what decides a run's numbers
_LABORATORY = ("runs.py", "baselines.py", "losses.py", "similarity.py")


def digest(source: str) -> str:
    """A digest of what a Python source does.

    Comments, docstrings and formatting do not count.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _remove_docstring(node)
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:12]


def _remove_docstring(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> None:
    if ast.get_docstring(node, clean=False) is not None:
        node.body = node.body[1:] or [ast.Pass()]


def _of_catlib() -> dict[str, str]:
    laboratory = _PACKAGE / "lab"
    files = [path for path in _PACKAGE.rglob("*.py") if laboratory not in path.parents]
    files += [laboratory / name for name in _LABORATORY]
    return {
        f"catlib/{path.relative_to(_PACKAGE).as_posix()}": digest(path.read_text("utf-8"))
        for path in sorted(files)
    }


# computed when this is imported: a process goes on with the code that it has loaded
CATLIB = _of_catlib()


def code_of(model: str, dataset: str = "digits") -> dict[str, str | None]:
    """The digest of every file that decides the numbers of a run, by its name.

    Args:
        model: the name of the run's model. If it is "module:function", a model of one's own, the
            module's file counts too.
        dataset: the name of the run's data set. If it is the path of data of one's own, these
            count too; if there is nothing at that path now, their digest is None.
    """
    digests: dict[str, str | None] = dict(CATLIB)
    module, separator, _ = model.partition(":")
    path = _file_of(module) if separator else None
    if path is not None:
        digests[module] = digest(path.read_text("utf-8"))
    if dataset not in CLASSES:
        digests[f"data {dataset}"] = _digest_of_data(dataset)
    return digests


def _digest_of_data(dataset: str) -> str | None:
    """A digest of the file, or of all files in the folder, of a data set of one's own."""
    try:
        place = find_data(dataset)
    except ValueError:
        return None
    assert place is not None, "a data set of the course has no place of its own"
    if place.is_file():
        return _digest_of_file(place)
    whole = hashlib.sha256()
    for path in sorted(place.rglob("*")):
        if path.is_file():
            whole.update(f"{path.relative_to(place).as_posix()} {_digest_of_file(path)}".encode())
    return whole.hexdigest()[:12]


def _digest_of_file(path: Path) -> str:
    state = path.stat()
    return _digest_while_unchanged(path, state.st_mtime_ns, state.st_size)


@cache
def _digest_while_unchanged(path: Path, written: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _file_of(module: str) -> Path | None:
    """The source file of a module in the current folder, or of one that can be imported."""
    here = Path(*module.split(".")).with_suffix(".py")
    if here.is_file():
        return here
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        return None
    return Path(found.origin)


def differing(then: Digests, now: Digests) -> list[str]:
    """Names of the files that are not the same, or that only one side has.

    What cannot be looked at now, whose digest is None, is taken to be the same.
    """
    names = sorted({*then, *now})
    return [name for name in names if now.get(name, "") not in (None, then.get(name))]
