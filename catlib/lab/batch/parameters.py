"""The parameters that runs can be given: their names, their types, and how text becomes a value."""

import ast
import difflib
import inspect
import json
import re
import textwrap
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args, get_origin, get_type_hints

from ..runs import Trial

WORDS = {"true": True, "false": False, "none": None}
MARK_OF_PAPERMILL = "# Parameters\n"  # how the cell begins that papermill adds
NAMED_KINDS = {kind.__name__: kind for kind in (bool, int, float, str, list, dict)}


@dataclass(frozen=True)
class Parameter:
    """A name that a run can be given a value for.

    Attributes:
        kinds: the types that fit, such as `int` or `list[int]`, and `NoneType` where None does;
            empty if every value does.
        meaning: what it is, in a few words.
    """

    name: str
    default: Any
    kinds: tuple[Any, ...]
    meaning: str = ""

    def checked(self, value: Any) -> Any:
        """The value, whole numbers as floats where those are meant.

        Raises: ValueError: its type does not fit.
        """
        if not self.kinds:
            return value
        fitting = [kind for kind in self.kinds if fits(value, kind)]
        if not fitting:
            raise ValueError(
                f"{self.name} is {value!r}, of type {type(value).__name__}; "
                f"it must be {self.wanted()}, such as its default {self.default!r}"
            )
        if type(value) is int and int not in fitting:
            return float(value)
        if fitting == [list[float]]:
            return [float(element) for element in value]
        return value

    def wanted(self) -> str:
        """The types that fit, in words."""
        return " or ".join(kind_in_words(kind) for kind in self.kinds) or "any value"


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a kind: a type, or `list[int]`. A whole number is a float as well."""
    if get_origin(kind) is list:
        [of_elements] = get_args(kind)
        return type(value) is list and all(fits(element, of_elements) for element in value)
    return type(value) is kind or (kind is float and type(value) is int)


def kind_in_words(kind: Any) -> str:
    if kind is types.NoneType:
        return "None"
    if get_origin(kind) is list:
        return f"list of {kind_in_words(get_args(kind)[0])}"
    return kind.__name__


def kinds_of(default: Any, annotation: ast.expr | None = None) -> tuple[Any, ...]:
    """The types that fit a parameter of a notebook; none if every value fits."""
    if annotation is not None:
        return _kinds_named(annotation)
    return () if default is None else (type(default),)


def _kinds_named(annotation: ast.expr) -> tuple[Any, ...]:
    """The types that an annotation names; none if it is not one of those known here."""
    match annotation:
        case ast.Constant(value=None):
            return (types.NoneType,)
        case ast.Name(id=name) if name in NAMED_KINDS:
            return (NAMED_KINDS[name],)
        case ast.Subscript(value=ast.Name(id="list"), slice=of_elements):
            named = _kinds_named(of_elements)
            return (list[named[0]],) if len(named) == 1 else (list,)  # type: ignore[valid-type]
        case ast.Subscript(value=ast.Name(id="Optional"), slice=inner):
            named = _kinds_named(inner)
            return (*named, types.NoneType) if named else ()
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            sides = [_kinds_named(left), _kinds_named(right)]
            return sides[0] + sides[1] if all(sides) else ()
    return ()


def check_parameters(namespace: Mapping[str, Any]) -> None:
    """Check the parameters of the notebook that calls this; it says nothing if all is well.

    The first cell after the parameters calls `check_parameters(globals())`. papermill hands on
    what it was given without looking: a misspelt name changes nothing, and `8/255` arrives as
    text. The cells that ran before tell which parameters there are (the cell with
    `alpha: float = 0.5`) and which were given (the cell that papermill adds).

    Args:
        namespace: the notebook's global names, with IPython's list `In` of the cells that ran.

    Raises:
        ValueError: a value was given to a name that is no parameter.
        TypeError: the value of a parameter is not of its type.
    """
    declared: dict[str, Parameter] = {}
    given: list[str] = []
    for cell in namespace.get("In", []):
        found = declared_in(cell)
        if found:
            declared = found
        elif cell.startswith(MARK_OF_PAPERMILL):
            given = _names_assigned_in(cell)
    for name in given:
        if declared and name not in declared:
            raise ValueError(unknown_name("The notebook", name, declared))
    for name, parameter in declared.items():
        try:
            parameter.checked(namespace[name])
        except ValueError as error:
            raise TypeError(f"{error}. {_advice(namespace[name], parameter)}") from None


def declared_in(cell: str) -> dict[str, Parameter]:
    """The parameters that a cell declares as `name: type = literal`; none if it does more."""
    found = {}
    for statement in _statements(cell):
        match statement:
            case ast.ImportFrom(module="typing"):
                pass  # the names of types
            case ast.AnnAssign(
                target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value
            ):
                try:
                    default = ast.literal_eval(value)
                except ValueError:
                    return {}
                found[name] = Parameter(name, default, kinds_of(default, annotation))
            case _:
                return {}
    return found


def _names_assigned_in(cell: str) -> list[str]:
    names = []
    for statement in _statements(cell):
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)]):
                names.append(name)
    return names


def _statements(cell: str) -> list[ast.stmt]:
    """The statements of a cell; none if it is not Python."""
    try:
        return ast.parse(cell).body
    except SyntaxError:
        return []


def _advice(value: Any, parameter: Parameter) -> str:
    """What to do about a value that does not fit: text may be the right value, written wrongly."""
    if type(value) is str:
        meant = value_of(value, parameter)
        if any(fits(meant, kind) for kind in parameter.kinds):
            return f"With papermill: -y '{parameter.name}: {json.dumps(meant)}'"
    return f"Give {parameter.name} another value, then run the notebook again."


def parameters_of_trials() -> dict[str, Parameter]:
    """The settings of a Trial, each with what the comment at its field says."""
    hints = get_type_hints(Trial)
    meanings = comments_in(inspect.getsource(Trial))
    found = {}
    for field in fields(Trial):
        hint = hints[field.name]
        kinds = get_args(hint) or (hint,)
        found[field.name] = Parameter(field.name, field.default, kinds, meanings[field.name])
    return found


def comments_in(source: str) -> dict[str, str]:
    """What the comments say of each `name: type = value` in a source.

    It is the lines of comment right above it and the one that ends its line. A line that begins
    with "# --" or, as papermill writes it, with "# Parameters" is the heading of several.
    """
    meanings: dict[str, str] = {}
    above: list[str] = []
    for line in source.splitlines():
        code, _, comment = (part.strip() for part in line.partition("# "))
        declared = re.match(r"(\w+): ", code)
        if declared:
            meanings[declared[1]] = " ".join(filter(None, [*above, comment]))
        is_heading = comment.startswith(("--", "Parameters"))
        is_comment = line.strip().startswith("#") and not is_heading
        above = [*above, comment] if is_comment else []
    return meanings


def described(parameters: Iterable[Parameter]) -> str:
    """A list for reading: of each parameter its name, types and default, and what it means."""
    entries = []
    for parameter in parameters:
        default = "none" if parameter.default is None else str(parameter.default)
        heading = f"{parameter.name}={default}  ({parameter.wanted()})"
        meaning = textwrap.fill(
            parameter.meaning, 96, initial_indent="    ", subsequent_indent="    "
        )
        entries.append("\n".join(filter(None, [heading, meaning])))
    return "\n".join(entries)


def unknown_name(of: str, name: str, known: Iterable[str]) -> str:
    """The sentence about a name that a notebook or a trial does not have."""
    known = list(known)
    longer = sorted((one for one in known if one.startswith(name)), key=len)
    close = longer or difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{of} has no parameter {name!r}{hint}; it has: {', '.join(known)}"


def values_in(text: str, parameter: Parameter) -> list[Any]:
    """The values that a text lists: "0,0.5,0.9", "0:5" (0, 1, 2, 3, 4), "[0,1],[2]", "8/255"."""
    values: list[Any] = []
    for part in split_at_commas(text):
        whole_numbers = re.fullmatch(r"(-?\d+):(-?\d+)(?::(-?\d+))?", part)
        if whole_numbers and str not in parameter.kinds:
            start, stop, step = (int(number or 1) for number in whole_numbers.groups())
            if step == 0 or not range(start, stop, step):
                raise ValueError(
                    f"{parameter.name}: the range {part} is empty; START:STOP counts from START to "
                    "before STOP, and START:STOP:STEP by STEP."
                )
            values += range(start, stop, step)
        else:
            values.append(value_of(part, parameter))
    return values


def split_at_commas(text: str) -> list[str]:
    """The parts of a text between commas that stand in no bracket and no quotes."""
    parts = [""]
    depth = 0
    quote = ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in "([{":
            depth += 1
        elif sign in ")]}":
            depth -= 1
        if sign == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


def value_of(text: str, parameter: Parameter) -> Any:
    """The value that a text means for a parameter; text that is no literal is itself the value."""
    if parameter.kinds == (str,):
        return text.strip("'\"")
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    fraction = re.fullmatch(r"([\d.]+)/([\d.]+)", text)
    if fraction and float(fraction[2]) == 0:
        raise ValueError(f"{parameter.name} is {text}; nothing can be divided by 0.")
    if fraction:
        return float(fraction[1]) / float(fraction[2])
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
