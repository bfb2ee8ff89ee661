"""The study's tables as a whole: which are there, and two summaries of them all."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from .compare import COSTS, costs, did_not_learn, difference, ends, speed_row
from .study.plan import Piece, pieces_of, profiles

Tables = dict[str, pd.DataFrame]
KEYS = ["table", "sampling_number", "baseline", "arm"]


def all_pieces() -> list[Piece]:
    return [piece for profile in profiles() for piece in pieces_of(profile)]


def piece_of(table: str) -> Piece:
    """The piece of the study that writes this table."""
    name = table.removesuffix("_staleness")
    return next(piece for piece in all_pieces() if piece.table == name)


def load_tables(results: Path) -> Tables:
    """Every table of the study in which each arm has two seeds or more, by name."""
    tables = {}
    for piece in all_pieces():
        for name in (piece.table, f"{piece.table}_staleness"):
            path = results / f"{name}.csv"
            if not path.exists():
                continue
            table = pd.read_csv(path, comment="#")
            if piece.kind == "finals" or _has_pairs(piece, table):
                tables[name] = table
    return tables


def _has_pairs(piece: Piece, table: pd.DataFrame) -> bool:
    """Whether every arm, at every value of the grid, has two seeds or more."""
    grid = list(piece.options.get("grid", {}))
    planned = set()
    for arm, trial in piece.trials:
        planned.add((arm, *(getattr(trial, name) for name in grid)))
    seeds = table.groupby(["arm", *grid]).seed.nunique()
    return len(seeds) == len(planned) and seeds.min() > 1


def is_complete(piece: Piece, tables: Tables) -> bool:
    """Whether the table of a piece is there, with all the runs that the study plans."""
    table = tables.get(piece.table)
    if table is None:
        return False
    if piece.kind != "train":
        return True
    runs = table.groupby(["arm", "seed", *piece.options.get("grid", {})])
    return len(runs) == len(piece.trials)


@dataclass(frozen=True)
class Comparison:
    """Two arms of one table, at one sampling number where the table has several."""

    table: str
    sampling_number: float  # NaN where the table has one only
    baseline: str
    arm: str
    levels: dict
    records: pd.DataFrame

    @property
    def keys(self) -> dict:
        return {name: getattr(self, name) for name in KEYS}


def comparisons(tables: Tables) -> Iterator[Comparison]:
    """Every comparison of the study, in its order."""
    for piece in all_pieces():
        if piece.kind != "train" or piece.table not in tables:
            continue
        table = tables[piece.table]
        parts = [(math.nan, table)]
        if "sampling_number" in table:
            parts = list(table.groupby("sampling_number"))
        for number, records in parts:
            for baseline, arm in pairs_of(piece, table):
                yield Comparison(piece.table, number, baseline, arm, piece.levels, records)


def pairs_of(piece: Piece, table: pd.DataFrame) -> list[tuple[str, str]]:
    """Which arms are compared: those that the study pairs, else every arm with the first."""
    if "pairs" in piece.options:
        return [(baseline, arm) for baseline, arm in piece.options["pairs"]]
    first, *others = dict.fromkeys(table.arm)
    return [(first, arm) for arm in others]


def summary(tables: Tables) -> pd.DataFrame:
    """A row a comparison, level and cost: what both took on the mean, and the ratio baseline / arm.

    The ratio is paired by seed.
    """
    rows = []
    for one in comparisons(tables):
        names = {
            one.baseline: "baseline_cost",
            f"{one.baseline} reached": "baseline_reached",
            one.arm: "arm_cost",
            f"{one.arm} reached": "arm_reached",
        }
        both = one.records[one.records.arm.isin([one.baseline, one.arm])]
        for metric, levels in one.levels.items():
            took = {level: costs(both, level / 100, metric) for level in levels}
            for cost in COSTS:
                for level in levels:
                    row = one.keys | {"metric": metric, "level": float(level), "cost": cost}
                    speed = speed_row(took[level], cost, baseline=one.baseline, arm=one.arm)
                    rows.append(row | {names.get(name, name): speed[name] for name in speed})
    return pd.DataFrame(rows, columns=None if rows else KEYS).round(3)


def final(tables: Tables) -> pd.DataFrame:
    """A row a comparison: where the arm stood at the last iteration, and how far from its baseline.

    The difference is that of the robust accuracies, paired by seed.
    """
    rows = []
    for one in comparisons(tables):
        last = ends(one.records)
        baseline = last.loc[one.baseline]
        arm = last.loc[one.arm]
        row = one.keys | {"seeds": len(arm), "iteration": arm.iteration.max()}
        for name in ("accuracy", "robust_accuracy", "batch_accuracy", "final_robust_accuracy"):
            if name in last:
                row[name] = arm[name].mean()
                row[f"{name}_sd"] = arm[name].std()
        gap = difference(arm.robust_accuracy, baseline.robust_accuracy)
        row |= {"difference": round(gap.value, 4) + 0.0}  # not -0.0
        row |= {"low": gap.low, "high": gap.high, "p": gap.p}
        row["did_not_learn"] = did_not_learn(last)[one.arm]
        row["coverage"] = arm.coverage.mean()
        rows.append(row)
    return pd.DataFrame(rows).round(4)
