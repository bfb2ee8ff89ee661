"""Which settings won the searches: from their tables to chosen.toml, which later pieces read."""

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


def choices_text(results: Path) -> tuple[str, list[str]]:
    """What chosen.toml must say by the tables in a folder; and sentences on what is left out."""
    parts = [HEAD]
    left_out = []
    searches = [piece for name in profiles() for piece in pieces_of(name) if piece.kind == "search"]
    for piece in searches:
        path = results / f"{piece.table}.csv"
        table = measured(piece.table, results)
        if table is None:
            left_out.append(f"{piece.table}: there is no table yet; {piece.command}")
        elif runs_in(path) < len(piece.trials):
            left_out.append(
                f"{piece.table}: {runs_in(path)} of {len(piece.trials)} runs are done; "
                f"{piece.command}"
            )
        else:
            parts.append(_part(piece, table))
    return "\n".join(parts), left_out


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
    if text == HEAD:
        raise ValueError(
            f"no search in {results} is done, so nothing can be chosen: {'; '.join(left_out)}"
        )
    write_whole(CHOSEN, text.encode())
    chosen_settings.cache_clear()
    return left_out
