"""The study's tables as a whole: which are there, and two summaries of them all."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd

from .compare import (
    COSTS,
    costs,
    did_not_learn,
    difference,
    drawn_accuracy,
    ends,
    final_metric,
    measured,
    speed_row,
)
from .study.plan import Piece, pieces_of, profiles

Tables = dict[str, pd.DataFrame]
GRIDS = ["sampling_number", "train_size"]  # settings at each value of which arms are compared
KEYS = ["table", *GRIDS, "baseline", "arm"]


@lru_cache
def all_pieces() -> tuple[Piece, ...]:
    """Every piece of every profile; some thousand trials are checked when they are made."""
    return tuple(piece for profile in profiles() for piece in pieces_of(profile))


def piece_of(table: str) -> Piece:
    """The piece of the study that writes this table."""
    name = table.removesuffix("_staleness")
    return next(piece for piece in all_pieces() if piece.table == name)


def load_tables(results: Path) -> Tables:
    """Every table of the study in which each arm has two seeds or more, by name."""
    tables = {}
    for piece in all_pieces():
        for name in (piece.table, f"{piece.table}_staleness"):
            table = measured(name, results)
            if table is None:
                continue
            if piece.kind in ("finals", "search") or _has_pairs(piece, table):
                tables[name] = table
    return tables


def _has_pairs(piece: Piece, table: pd.DataFrame) -> bool:
    """Whether every arm of the table, at every value of the grid, has two seeds or more.

    An arm that the study plans may be missing altogether: the table is then older than the plan.
    """
    grid = list(piece.options.get("grid", {}))
    if not set(grid) <= set(table.columns):
        return False
    arms = set(table.arm)
    planned = set()
    for arm, trial in piece.trials:
        if arm in arms:
            planned.add((arm, *(getattr(trial, name) for name in grid)))
    seeds = table.groupby(["arm", *grid]).seed.nunique()
    return len(seeds) == len(planned) and seeds.min() > 1


def is_complete(piece: Piece, tables: Tables) -> bool:
    """Whether the table of a piece is there, with all the runs that the study plans."""
    table = tables.get(piece.table)
    if table is None:
        return False
    if piece.kind in ("search", "frontier"):
        return len(table) == len(piece.trials)
    if piece.kind != "train":
        return True
    runs = table.groupby(["arm", "seed", *piece.options.get("grid", {})])
    return len(runs) == len(piece.trials)


@dataclass(frozen=True)
class Comparison:
    """Two arms of one table, at one sampling number or training set where it has several."""

    table: str
    sampling_number: float  # NaN where the table has one only, as the next
    train_size: float
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
        for values, records in parts_of(table):
            number = values["sampling_number"]
            size = values["train_size"]
            for baseline, arm in pairs_of(piece, table):
                yield Comparison(piece.table, number, size, baseline, arm, piece.levels, records)


def parts_of(table: pd.DataFrame) -> Iterator[tuple[dict[str, float], pd.DataFrame]]:
    """A value of each of GRIDS and the rows that have it; NaN where the table has one only."""
    there = [name for name in GRIDS if name in table]
    if not there:
        yield dict.fromkeys(GRIDS, math.nan), table
        return
    for values, records in table.groupby(there):
        yield dict.fromkeys(GRIDS, math.nan) | dict(zip(there, values, strict=True)), records


def pairs_of(piece: Piece, table: pd.DataFrame) -> list[tuple[str, str]]:
    """Which arms are compared: those that the study pairs, else every arm with the first."""
    if "pairs" in piece.options:
        arms = set(table.arm)
        return [
            (baseline, arm) for baseline, arm in piece.options["pairs"] if {baseline, arm} <= arms
        ]
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
    table = pd.DataFrame(rows, columns=None if rows else KEYS)
    return table.round({name: 6 if name == "p" else 3 for name in table.select_dtypes("number")})


def final(tables: Tables) -> pd.DataFrame:
    """A row a comparison: where the arm stood at the last iteration, and how far from its baseline.

    The difference is that of the robust accuracies under the strongest attack at the end, paired by
    seed. Beside it stands the
    manipulation check, where the table has it: the share of draws that met an image again, and by
    how much the arm's batches were harder (``drawn_difference`` below 0) than its baseline's.
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
        metric = final_metric(last)
        gap = difference(arm[metric], baseline[metric])
        row |= {"difference": round(gap.value, 4) + 0.0}  # not -0.0
        row |= {"low": gap.low, "high": gap.high, "p": gap.p}
        row["did_not_learn"] = did_not_learn(last)[one.arm]
        row["coverage"] = arm.coverage.mean()
        if "drawn_accuracy" in last:
            drawn = drawn_accuracy(one.records)
            harder = difference(drawn[one.arm], drawn[one.baseline])
            row |= {"met_again": arm.met_again.mean(), "drawn_accuracy": drawn[one.arm].mean()}
            row |= {"drawn_difference": harder.value}
            row |= {"drawn_low": harder.low, "drawn_high": harder.high}
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.round({name: 6 if name == "p" else 4 for name in table.select_dtypes("number")})
