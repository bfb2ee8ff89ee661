"""The reference of the public names, made from their signatures and docstrings, as a notebook.

Docstrings are read as they are written here: prose, then sections such as `Args:` and `Raises:`
whose text may begin on the line of the title, which the usual parsers do not take for a section.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
from nbformat.v4 import new_markdown_cell, new_notebook

import catlib
from catlib import readings

from . import (
    baselines,
    compare,
    explore,
    frontier,
    judge,
    losses,
    panel,
    runs,
    similarity,
    train,
)
from .batch import engine, units
from .paths import ROOT

# the order of docs/house.md; a public name of any other file of catlib comes after these
METHOD = ("attacks", "gain", "samplers", "data", "models", "training", "evaluation")
# imported from their own file: what documents tell users to import, and what belongs to it
OWN_FILE: dict[ModuleType, tuple[str, ...]] = {
    readings: ("near_boundary", "by_rank", "steps_near_boundary"),
    judge: ("judge", "Report", "load_weights", "read_weights"),
    runs: ("Trial", "run", "read_records", "build_training", "records_of", "is_done", "read_run"),
    units: ("values_for", "units_for"),
    engine: ("Processes", "run_jobs"),
    baselines: ("NFGSM", "BatchMean", "FreeTraining"),
    losses: ("TRADES", "MART", "KLAttack"),
    compare: ("measured", "costs", "speed_table", "overall", "mean_interval", "Estimate"),
    frontier: ("by_budget", "passes_for", "ratios"),
    train: ("load_model",),
    similarity: ("neighbour_similarity", "staleness", "cosine_similarity", "rank_correlation"),
    panel: ("TrainingPanel", "interactive"),
    explore: ("explore",),
}
TITLES = {
    "Args": "Arguments",
    "Attributes": "Attributes",
    "Returns": "Returns",
    "Yields": "Yields",
    "Raises": "Raises",
}
INTRODUCTION = """Every public name, by the file where it stands. Those of the method are names of
`catlib` itself, as in `catlib.pgd`; those of `catlib.readings` and of the laboratory are imported
from their file, as in `from catlib.lab.judge import judge`. Images are float in [0, 1],
(B, C, H, W), and epsilon is in those units."""
SECTION = re.compile(rf"({'|'.join(TITLES)}):(.*)")
ENTRY = re.compile(r"(\*{0,2}\w+(?:, \w+)*): *(.*)", re.DOTALL)
ERRORS = re.compile(r"((?:[A-Z]\w+(?:Error|Interrupt)(?:, )?)+): ")


def reference() -> nbformat.NotebookNode:
    """The reference as a notebook of Markdown cells: a list of all names, then each by its file."""
    rooms = public_names()
    known = {entry.name for entries in rooms.values() for entry in entries}
    cells = [f"# API reference\n\n{INTRODUCTION}\n\n{_contents(rooms)}"]
    for module, entries in rooms.items():
        cells.append(f"## {module.__name__}\n\n{_markdown(inspect.getdoc(module) or '', known)}")
        for entry in entries:
            cells.append(_described(entry, known))
            cells += [_described(member, known, level=4) for member in entry.members()]
    return new_notebook(cells=[new_markdown_cell(text) for text in cells])


def public_names() -> dict[ModuleType, list["Entry"]]:
    """Every name of the reference by the module where it stands, in the order of the page."""
    rooms: dict[ModuleType, list[Entry]] = {}
    public = [getattr(catlib, name) for name in catlib.__all__]
    for value in sorted(public, key=_place_in_method):
        entry = Entry(value.__name__, value)
        rooms.setdefault(_room_of(value), []).append(entry)
    for module, names in OWN_FILE.items():
        rooms[module] = [Entry(name, getattr(module, name)) for name in names]
    return rooms


def _room_of(value: Any) -> ModuleType:
    """The module of catlib, or the folder of modules, in which a public name stands."""
    name = value.__module__.split(".")[1]
    return getattr(catlib, name)


def _place_in_method(value: Any) -> tuple[int, str, int]:
    room = value.__module__.split(".")[1]
    place = METHOD.index(room) if room in METHOD else len(METHOD)
    _, line = inspect.getsourcelines(value)
    return place, value.__module__, line


# ------------------------------------------------------------------ one name


@dataclass(frozen=True)
class Entry:
    """A public function or class, or a method of one.

    Attributes:
        name: on the page; of a method with its class, as "Data.train".
        value: the function, class or property itself.
    """

    name: str
    value: Any

    @property
    def function(self) -> Any:
        """What has the source: the function behind a property or class method, or the value."""
        if isinstance(self.value, property):
            return self.value.fget
        return inspect.unwrap(self.value)

    @property
    def docstring(self) -> str:
        """The docstring, or that of the method that this one overrides."""
        return inspect.getdoc(self.value) or ""

    @cached_property
    def source(self) -> str:
        """The text of the definition, without indentation."""
        return textwrap.dedent(inspect.getsource(self.function))

    @cached_property
    def _definition(self) -> Any:
        """The definition as a syntax tree."""
        return ast.parse(self.source).body[0]

    def _constructor(self) -> "Entry | None":
        """What is called to make an instance; None for a function, and for a class of fields."""
        if not inspect.isclass(self.value) or is_dataclass(self.value):
            return None
        return Entry(self.name, self.value.__init__)

    def signature(self) -> str:
        """How it is called, as the source says it; of a dataclass its fields, comments included."""
        constructor = self._constructor()
        if constructor:
            return constructor.signature()
        lines = self.source.splitlines()
        body = self._definition.body
        if inspect.isclass(self.value):
            after_docstring = body[0].end_lineno
            methods = [node for node in body if isinstance(node, ast.FunctionDef)]
            end = _first_line(methods[0]) - 1 if methods else len(lines)
            fields = textwrap.dedent("\n".join(lines[after_docstring:end])).strip()
            return f"class {self.name}:\n{textwrap.indent(fields, '    ')}"
        header = "\n".join(lines[self._definition.lineno - 1 : body[0].lineno - 1])
        called = re.sub(rf"def {self._definition.name}\b", self.name, header.rstrip().rstrip(":"))
        called = re.sub(r"\((\s*)(?:self|cls)(?:,\s*|(?=\)))", r"(\1", called)
        if isinstance(self.value, property):
            return called.replace("()", "")
        return called

    def types(self) -> dict[str, str]:
        """Its parameters, or the fields of a dataclass, and their types as the source says them."""
        constructor = self._constructor()
        if constructor:
            return constructor.types()
        if inspect.isclass(self.value):
            fields = [node for node in self._definition.body if isinstance(node, ast.AnnAssign)]
            return {ast.unparse(field.target): ast.unparse(field.annotation) for field in fields}
        arguments = self._definition.args
        named = [*arguments.posonlyargs, *arguments.args, arguments.vararg]
        named += [*arguments.kwonlyargs, arguments.kwarg]
        return {
            each.arg: ast.unparse(each.annotation) if each.annotation else ""
            for each in named
            if each and each.arg not in ("self", "cls")
        }

    def place(self) -> tuple[str, int]:
        """The file, from the folder of the clone, and the line of the definition."""
        path = Path(inspect.getsourcefile(self.function) or "").relative_to(ROOT)
        _, line = inspect.getsourcelines(self.function)
        return path.as_posix(), line

    def members(self) -> Iterator["Entry"]:
        """The public methods and properties of a class that have a docstring, as they stand."""
        if not inspect.isclass(self.value):
            return
        found: dict[str, Any] = {}
        for ancestor in reversed(self.value.__mro__):
            if ancestor.__module__.split(".")[0] == "catlib":
                found |= {name: getattr(self.value, name) for name in vars(ancestor)}
        for name, value in found.items():
            is_public = not name.startswith("_") or (name == "__call__" and value.__doc__)
            member = Entry(f"{self.name}.{name}", value)
            if is_public and (callable(value) or isinstance(value, property)) and member.docstring:
                yield member


def _first_line(function: ast.FunctionDef) -> int:
    """The line where a function begins, its decorators included."""
    return min([function.lineno, *(each.lineno for each in function.decorator_list)])


# ------------------------------------------------------------------ a docstring


def sections(docstring: str) -> list[tuple[str, str]]:
    """A docstring in parts: the title of a section, "" for prose, and its text."""
    parts: list[tuple[str, list[str]]] = [("", [])]
    for line in docstring.splitlines():
        begins = SECTION.fullmatch(line)
        if begins:
            parts.append((begins[1], [begins[2].strip()]))
        elif line and not line.startswith(" ") and parts[-1][0]:
            parts.append(("", [line]))
        else:
            parts[-1][1].append(line)
    found = []
    for title, lines in parts:
        begun = "\n".join(lines[:1])
        rest = textwrap.dedent("\n".join(lines[1:]))
        text = f"{begun}\n{rest}".strip()
        if text:
            found.append((title, text))
    return found


def entries(text: str) -> dict[str, str]:
    """The entries of a section such as `Args:`, each a name and what is said of it."""
    found: dict[str, str] = {}
    for part in re.split(r"\n(?=\S)", text):
        match = ENTRY.fullmatch(part)
        if match:
            for name in match[1].split(", "):
                found[name.lstrip("*")] = " ".join(match[2].split())
    return found


def errors(text: str) -> list[tuple[str, str]]:
    """A section `Raises:` as errors and when they are raised; no error where it names none."""
    first, *rest = ERRORS.split(" ".join(text.split()))
    found = [("", first.strip())] if first.strip() else []
    return found + list(zip(rest[::2], (each.strip() for each in rest[1::2]), strict=True))


# ------------------------------------------------------------------ as Markdown


def _contents(rooms: dict[ModuleType, list[Entry]]) -> str:
    """A list of all names, each a link."""
    lines = []
    for module, listed in rooms.items():
        links = ", ".join(f"[{entry.name}](#{entry.name})" for entry in listed)
        lines.append(f"- [`{module.__name__}`](#{module.__name__}): {links}")
    return "\n".join(lines)


def _described(entry: Entry, known: set[str], level: int = 3) -> str:
    """One name: its heading, its signature, where it stands, and its docstring."""
    path, line = entry.place()
    parts = [
        f"{level * '#'} {entry.name.replace('__', '&#95;&#95;')}",
        f"```python\n{entry.signature()}\n```",
    ]
    if level == 3:
        parts.append(f"*In [{path}](../{path}#L{line}), line {line}.*")
    for title, text in sections(entry.docstring):
        parts.append(_section(title, text, known))
    return "\n\n".join(parts)


def _section(title: str, text: str, known: set[str]) -> str:
    if not title:
        return _markdown(text, known)
    heading = f"**{TITLES[title]}**"
    if title in ("Args", "Attributes"):
        rows = [f"- `{name}`: {_markdown(said, known)}" for name, said in entries(text).items()]
    elif title == "Raises":
        rows = [f"- {_error(kind)}{_markdown(said, known)}" for kind, said in errors(text)]
    else:
        return f"{heading}: {_markdown(text, known)}"
    return "\n".join([heading, "", *rows])


def _error(kinds: str) -> str:
    if not kinds:
        return ""
    return ", ".join(f"`{kind}`" for kind in kinds.split(", ")) + ": "


def _markdown(text: str, known: set[str]) -> str:
    """The text of a docstring with its references to other names as links."""

    def link(match: re.Match) -> str:
        name = match[1].lstrip("~").removeprefix("catlib.")
        return f"[`{name}`](#{name})" if name in known else f"`{name}`"

    return re.sub(r":(?:func|class|meth|data|mod):`([^`]+)`", link, text)
