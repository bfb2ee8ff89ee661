"""Which settings won the searches: from their tables to chosen.toml, which later pieces read."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from ...files import write_whole
from ..compare import measured
from .plan import CHOSEN, Piece, chosen_settings, pieces_of, profiles
from .tables import runs_in

HEAD = """\
# Which settings won the searches of the study: of each arm those with the best robust accuracy on
# held-out training images, ties by clean accuracy. Written by `catlib study --choose`; do not edit.
"""


def choices_of(piece: Piece, table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The settings of each arm's best draw, in the order of the piece.

    Args:
        piece: of kind "search".
        table: its table, a row an arm and draw.

    Returns: by arm; an arm of which every draw diverged is not there.
    """
    found = {}
    for arm in piece.options["arms"]:
        mine = table[table.arm == arm].dropna(subset=["robust_accuracy"])
        if mine.empty:
            continue
        order = ["robust_accuracy", "accuracy", "draw"]
        best = mine.sort_values(order, ascending=[False, False, True]).iloc[0]
        found[arm] = {
            name: _plain(best[name], law)
            for name, law in piece.options["ranges"].items()
            if name in best and not pd.isna(best[name])
        }
    return found


def _plain(value: Any, law: dict[str, Any]) -> Any:
    """A number as study.toml writes it: whole where all values to choose from are."""
    if all(isinstance(one, int) for one in law.get("choice", [0.5])):
        return int(value)
    return float(value)


def searches() -> list[Piece]:
    """The searches of all profiles."""
    return [piece for name in profiles() for piece in pieces_of(name) if piece.kind == "search"]


def choices_text(results: Path) -> tuple[str, list[str]]:
    """What chosen.toml must say by the tables in a folder; and sentences on what is left out.

    A search that is left out keeps what was chosen before.
    """
    parts = [HEAD]
    left_out = []
    before = _parts_of(CHOSEN.read_text(encoding="utf-8")) if CHOSEN.exists() else {}
    for piece in searches():
        path = results / f"{piece.table}.csv"
        table = measured(piece.table, results)
        if table is not None and runs_in(path) >= len(piece.trials):
            parts.append(_part(piece, table))
            continue
        there = "there is no table yet"
        if table is not None:
            there = f"{runs_in(path)} of {len(piece.trials)} runs are done"
        kept = ""
        if piece.table in before:
            parts.append(before[piece.table])
            kept = "; what was chosen before is kept"
        left_out.append(f"{piece.table}: {there}{kept}; {piece.command}")
    return "\n".join(parts), left_out


def _parts_of(text: str) -> dict[str, str]:
    """The parts of a chosen.toml, each with the comment that begins it, by the table it is from."""
    parts = {}
    for part in text.split("\n\n"):
        found = re.match(r"# from (\w[\w.]*)\.csv,", part)
        if found:
            parts[found[1]] = part.rstrip() + "\n"
    return parts


def _part(piece: Piece, table: pd.DataFrame) -> str:
    code = "unknown"
    for line in table.attrs["about"].splitlines():
        if line.startswith("code: "):
            code = line.removeprefix("code: ")
    lines = [f"# from {piece.table}.csv, made by the code {code}"]
    lines.append(f'[{piece.profile}."{piece.name}"]')
    for arm, settings in choices_of(piece, table).items():
        inside = ", ".join(f"{name} = {value!r}" for name, value in settings.items())
        lines.append(f'"{arm}" = {{ {inside} }}')
    return "\n".join(lines) + "\n"


def choose(results: Path) -> list[str]:
    """Write chosen.toml by the tables in a folder, if there is a whole table of any search.

    Returns: sentences on what was left out.

    Raises: ValueError: no search is done.
    """
    text, left_out = choices_text(results)
    if len(left_out) == len(searches()):
        raise ValueError(
            f"no search in {results} is done, so nothing can be chosen: {'; '.join(left_out)}"
        )
    write_whole(CHOSEN, text.encode())
    chosen_settings.cache_clear()
    return left_out
