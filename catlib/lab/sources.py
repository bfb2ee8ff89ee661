"""Which code made a number: digests of the source files that decide what a run computes."""

import ast
import hashlib
import importlib.util
from pathlib import Path

import catlib

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


def code_of(model: str) -> dict[str, str]:
    """The digest of every source file that decides the numbers of a run, by its name.

    Args:
        model: the name of the run's model. If it is "module:function", a model of one's own, the
            module's file counts too.
    """
    module, separator, _ = model.partition(":")
    if not separator:
        return CATLIB
    path = _file_of(module)
    if path is None:
        return CATLIB
    return CATLIB | {module: digest(path.read_text("utf-8"))}


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


def differing(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """Names of the files whose code is not the same, or that only one side has."""
    return [name for name in sorted(then | now) if then.get(name) != now.get(name)]
