"""The parameters that runs can be given: their names, their types, and how text becomes a value."""

import ast
import difflib
import re
import types
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints

from ..runs import Trial

WORDS = {"true": True, "false": False, "none": None}
NAMED_KINDS = {kind.__name__: kind for kind in (bool, int, float, str, list, dict)}


@dataclass(frozen=True)
class Parameter:
    """A name that a run can be given a value for.

    Attributes:
        kinds: the types that fit, `None` itself as `NoneType`; empty if every value does.
    """

    name: str
    default: Any
    kinds: tuple[type, ...]

    def checked(self, value: Any) -> Any:
        """The value, a whole number as a float where that is meant.

        Raises: ValueError: its type does not fit.
        """
        if not self.kinds or type(value) in self.kinds:
            return value
        if type(value) is int and float in self.kinds:
            return float(value)
        wanted = " or ".join("None" if k is types.NoneType else k.__name__ for k in self.kinds)
        raise ValueError(
            f"{self.name} is {value!r}, a {type(value).__name__}; it must be {wanted}, "
            f"such as its default {self.default!r}"
        )


def kinds_of(default: Any, annotation: ast.expr | None = None) -> tuple[type, ...]:
    """The types that fit a parameter of a notebook."""
    if annotation is not None:
        name = ast.unparse(annotation)
        return (NAMED_KINDS[name],) if name in NAMED_KINDS else ()
    return () if default is None else (type(default),)


def parameters_of_trials() -> dict[str, Parameter]:
    """The settings of a Trial."""
    hints = get_type_hints(Trial)
    found = {}
    for field in fields(Trial):
        hint = hints[field.name]
        found[field.name] = Parameter(field.name, field.default, get_args(hint) or (hint,))
    return found


def unknown_name(of: str, name: str, known: Iterable[str]) -> str:
    """The sentence about a name that a notebook or a trial does not have."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{of} has no parameter {name!r}{hint}; it has: {', '.join(known)}"


def values_in(text: str, parameter: Parameter) -> list[Any]:
    """The values that a text lists: "0,0.5,0.9", "0:5" (0, 1, 2, 3, 4), "[0,1],[2]", "8/255"."""
    values: list[Any] = []
    for part in split_at_commas(text):
        whole_numbers = re.fullmatch(r"(-?\d+):(-?\d+)(?::(-?\d+))?", part)
        if whole_numbers and str not in parameter.kinds:
            start, stop, step = (int(number or 1) for number in whole_numbers.groups())
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
    if fraction:
        return float(fraction[1]) / float(fraction[2])
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
