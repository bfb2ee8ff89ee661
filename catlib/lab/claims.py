"""What the paper claims (claims.toml), and how each claim is measured from the tables of the study.

Nothing is typed by hand but the paper's own words and numbers. A claim whose best table is missing
is open. How an answer reads is said in the templates (:mod:`catlib.lab.pages`).
"""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pandas as pd

from . import compare
from .compare import Estimate, difference, ends, faster, judged, overall, ratio, speed_table
from .paper import PAPER, paper_table
from .study.plan import Piece
from .summaries import Tables, piece_of

CONFIGURATION = Path(__file__).with_name("claims.toml")


@dataclass(frozen=True)
class Claim:
    """A claim of the paper; the function ``measure`` answers it from each of the tables."""

    text: str
    paper: str
    tables: tuple[str, ...]  # the best one first
    measure: str
    arguments: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What one table says to a claim: the verdict, and the numbers that it comes from."""

    verdict: str
    numbers: dict


@lru_cache
def configuration() -> dict:
    return tomllib.loads(CONFIGURATION.read_text(encoding="utf-8"))


def tables_of(name: str) -> tuple[str, ...]:
    """The study's tables under a key of claims.toml, the best one first."""
    return tuple(configuration()["tables"][name])


def first_there(name: str, tables: Tables) -> str | None:
    """The best one of these tables that is measured; None where none is."""
    return next((table for table in tables_of(name) if table in tables), None)


def all_claims() -> list[Claim]:
    """Every claim of the paper, in the order of the page."""
    claims = []
    for entry in configuration()["claims"]:
        tables = tables_of(entry["tables"])
        if "cells_of" in entry:
            claims += _cells(entry["text"], entry["cells_of"], tables)
        else:
            arguments = entry.get("with", {})
            claims.append(Claim(entry["text"], entry["paper"], tables, entry["measure"], arguments))
    return claims


def cell_claims() -> list[Claim]:
    """The claims that are a cell of the paper's Table 1 or 2."""
    return [claim for claim in all_claims() if claim.measure == "cell"]


def _cells(table: str, dataset: str, tables: tuple[str, ...]) -> list[Claim]:
    """A claim for every cell of one of the paper's two tables."""
    claims = []
    for part, metric in zip("ab", PAPER[dataset], strict=True):
        for level, row in paper_table(dataset, metric).iterrows():
            printed = row["AT/CAT"]
            at, cat = int(row["AT ticks"]), int(row["CAT ticks"])
            claims.append(
                Claim(
                    text=f"{table}{part}: {level} % {metric.replace('_', ' ')}",
                    paper=f"AT {at}, CAT {cat} ticks: {printed:.2f}",
                    tables=tables,
                    measure="cell",
                    arguments={"metric": metric, "level": level, "printed": printed},
                )
            )
    return claims


def answers(claim: Claim, tables: Tables) -> dict[str, Answer]:
    """What every table that is there says to a claim, by the table's name."""
    there = [name for name in claim.tables if name in tables]
    return {name: answer(claim, tables[name], name) for name in there}


def answer(claim: Claim, records: pd.DataFrame, table: str) -> Answer:
    """What one table says to a claim."""
    return MEASURES[claim.measure](records, piece_of(table), **claim.arguments)


def open_piece(claim: Claim, tables: Tables) -> Piece | None:
    """The piece of the study that would answer a claim best, where it is not measured yet."""
    best = claim.tables[0]
    return None if best in tables else piece_of(best)


# ---------------------------------------------------------- measures: (records, piece) -> Answer


def levels_of(piece: Piece, metric: str = "robust_accuracy") -> list[float]:
    """The accuracies, in [0, 1], that the study times in the table of a piece."""
    return [level / 100 for level in piece.levels[metric]]


def cell(records: pd.DataFrame, piece: Piece, metric: str, level: float, printed: float) -> Answer:
    """A cell of Table 1 or 2: what AT and CAT took to one level."""
    speed = speed_table(records, [level / 100], metric).iloc[0]
    estimate = compare.estimate_of(speed)
    numbers = {"speed": speed, "ratio": estimate}
    if estimate.pairs == 0:
        return Answer("not reached by both", numbers)
    verdict = faster(estimate)
    if estimate.pairs > 2:
        inside = estimate.low <= printed <= estimate.high
        where = "inside" if inside else "outside"
        verdict += f"; the printed ratio lies {where} the interval"
    return Answer(verdict, numbers)


def all_levels(
    records: pd.DataFrame,
    piece: Piece,
    metric: str = "robust_accuracy",
    baseline: str = "AT",
    arm: str = "CAT",
    cost: str = "iteration",
) -> Answer:
    """One ratio over all levels of a metric."""
    estimate = overall(records, levels_of(piece, metric), metric, cost, baseline, arm)
    verdict = judged(estimate, "faster with CAT", "slower with CAT", null=1)
    numbers = {
        "ratio": estimate,
        "metric": metric,
        "baseline": baseline,
        "arm": arm,
        "cost": compare.COSTS[cost],
    }
    return Answer(verdict, numbers)


def largest_ratio(records: pd.DataFrame, piece: Piece) -> Answer:
    """The level of robust accuracy at which CAT leads most."""
    speed = speed_table(records, levels_of(piece)).dropna(subset="ratio")
    if speed.empty:
        return Answer("not settled", {"count": 0})
    best = speed.loc[speed.ratio.idxmax()]
    estimate = compare.estimate_of(best)
    verdict = judged(estimate, "holds", "does not hold: below 3", null=3)
    return Answer(verdict, {"count": len(speed), "ratio": estimate, "level": best.level})


def all_settings(records: pd.DataFrame, piece: Piece) -> Answer:
    """At how many levels CAT is shown to be faster."""
    words = []
    for metric in compare.METRICS:
        speed = speed_table(records, levels_of(piece, metric), metric).dropna(subset="ratio")
        words += [faster(compare.estimate_of(row)) for row in speed.itertuples()]
    holds = set(words) == {"CAT faster"}
    verdict = "holds" if holds else "does not hold at every level"
    counts = {word: words.count(word) for word in words}
    return Answer(verdict, {"counts": counts, "levels": len(words)})


def at_the_end(
    records: pd.DataFrame, piece: Piece, baseline: str, arm: str, above: str, below: str
) -> Answer:
    """Robust accuracies at the last iteration; by PGD with restarts where the study did that."""
    last = ends(records)
    metric = final_metric(last)
    mine, others = last.loc[arm, metric], last.loc[baseline, metric]
    gap = difference(mine, others)
    numbers = {
        "arms": {arm: mine, baseline: others},
        "difference": gap,
        "restarts": metric == "final_robust_accuracy",
    }
    return Answer(judged(gap, above, below), numbers)


def final_metric(last: pd.DataFrame) -> str:
    """The column with the strongest attack at the end."""
    if "final_robust_accuracy" in last:
        return "final_robust_accuracy"
    return "robust_accuracy"


def seconds_an_iteration(records: pd.DataFrame, piece: Piece) -> Answer:
    """What an iteration of CAT takes, against one of AT."""
    last = ends(records)
    seconds = last.seconds / last.iteration
    estimate = ratio(*seconds["CAT"].align(seconds["AT"], join="inner"))
    return Answer(judged(estimate, "dearer", "cheaper", null=1), {"ratio": estimate})


def passes_an_example(records: pd.DataFrame, piece: Piece) -> Answer:
    """How many forward-backward passes AT spends where normal training spends one."""
    last = records[records.arm == "AT"].iloc[-1]
    _, trial = piece.trials[0]
    passes = last.passes / last.iteration / trial.sampling_number
    return Answer("holds: it is arithmetic", {"passes": passes})


def neighbours_alike(rows: pd.DataFrame, piece: Piece) -> Answer:
    """Fig. 1: similarity of predictions one iteration apart, against another image of the class."""
    rows = rows[(rows.gap == 1) & (rows.arm == "AT")]
    runs = rows.groupby(["start", "seed"])[["mean", "agreement", "control"]].mean()
    fresh = runs.loc["fresh"]
    gap = difference(fresh["mean"], fresh["control"])
    verdict = judged(gap, "holds: above what the class explains", "does not hold")
    return Answer(verdict, {"starts": dict(list(runs.groupby("start")))})


def old_weights(rows: pd.DataFrame, piece: Piece) -> Answer:
    """Does an old weight still rank examples? Of AT, where age is independent of weight."""
    late = rows.iteration > rows.iteration.max() / 2
    mine = rows[late & (rows.alpha == 0.5) & (rows.arm == "AT")]
    by_age = mine.groupby("age").rank_correlation.mean()
    if by_age.min() > 0.5:
        verdict = "holds"
    elif by_age.iloc[0] > 0.5:
        verdict = "fades with age"
    else:
        verdict = "weak"
    return Answer(verdict, {"by_age": by_age.to_dict()})


def every_sampling_number(records: pd.DataFrame, piece: Piece) -> Answer:
    """AT / CAT at each sampling number."""
    ratios = {}
    for number, part in records.groupby("sampling_number"):
        ratios[number] = overall(part, levels_of(piece))
    shown = [faster(estimate).startswith("CAT faster") for estimate in ratios.values()]
    verdict = f"shown at {sum(shown)} of {len(shown)} sampling numbers"
    return Answer(verdict, {"ratios": ratios})


def peak(records: pd.DataFrame, piece: Piece) -> Answer:
    """Which sampling number is best, after equal iterations and after equal work."""
    cat = records[records.arm == "CAT"].sort_values("iteration")
    budget = cat.groupby("sampling_number").passes.max().min()  # all that the smallest one spends
    at_end = _last_means(cat)
    at_budget = _last_means(cat[cat.passes <= budget])
    best = at_end.idxmax()
    inside = best not in (at_end.index[0], at_end.index[-1])
    where = "a peak inside" if inside else "at the end of"
    return Answer(
        f"best k = {best} by iterations, {where} the range; k = {at_budget.idxmax()} by passes",
        {
            "iterations": cat.iteration.max(),
            "at_end": at_end.to_dict(),
            "budget": budget,
            "at_budget": at_budget.to_dict(),
        },
    )


def _last_means(records: pd.DataFrame) -> pd.Series:
    """The last robust accuracy of each sampling number, mean over seeds."""
    last = records.groupby(["sampling_number", "seed"]).robust_accuracy.last()
    return last.groupby("sampling_number").mean()


def come_together(records: pd.DataFrame, piece: Piece) -> Answer:
    """How far CAT and AT lie apart at the end, from the smallest sampling number to the largest."""
    gaps: dict[int, Estimate] = {}
    for number, part in records.groupby("sampling_number"):
        last = ends(part).robust_accuracy
        gaps[number] = difference(last["CAT"], last["AT"])
    smaller = abs(gaps[max(gaps)].value) < abs(gaps[min(gaps)].value)
    word = "smaller" if smaller else "not smaller"
    return Answer(f"the gap is {word} at the largest k", {"gaps": gaps})


ALPHAS = {
    "alpha 0": 0,
    "alpha 0.25": 0.25,
    "CAT": 0.5,
    "alpha 0.75": 0.75,
    "alpha 0.9": 0.9,
    "alpha 0.99": 0.99,
}


def best_alpha(records: pd.DataFrame, piece: Piece) -> Answer:
    """Is the paper's alpha better or worse than another at the end?"""
    last = ends(records).robust_accuracy
    means, better, worse = {}, [], []
    for arm, alpha in ALPHAS.items():
        if arm not in last:
            continue
        means[alpha] = last[arm].mean()
        gap = difference(last["CAT"], last[arm])
        if gap.low > 0:
            better.append(f"{alpha:g}")
        if gap.high < 0:
            worse.append(f"{alpha:g}")
    shown = []
    if better:
        shown.append(f"0.5 shown better than {', '.join(better)}")
    if worse:
        shown.append(f"0.5 shown worse than {', '.join(worse)}")
    verdict = "; ".join(shown) or "no other value is shown better or worse"
    return Answer(verdict, {"means": means})


def few_examples(records: pd.DataFrame, piece: Piece) -> Answer:
    """The share of the training images that each method draws."""
    last = ends(records)
    gap = difference(last.coverage["CAT"], last.coverage["AT"])
    arms = {arm: last.loc[arm] for arm in ("AT", "CAT")}
    return Answer(judged(gap, "CAT saw more", "CAT saw fewer"), {"arms": arms})


def audit(records: pd.DataFrame, piece: Piece) -> pd.DataFrame:
    """:func:`catlib.lab.compare.audit` of a piece of the study."""
    _, trial = piece.trials[0]
    return compare.audit(records, trial.dataset)


def printed_reached(records: pd.DataFrame, piece: Piece) -> Answer:
    """Which readings reach the highest printed robust accuracy within the printed iterations."""
    rows = audit(records, piece)
    top = rows[rows.level == rows.level.max()]
    names = list(top.arm[top["reached on test"]])
    verdict = "reproduced by the readings named"
    if not names:
        verdict = "not reproduced by any reading tried"
    return Answer(verdict, {"level": rows.level.max(), "names": names, "readings": len(top)})


MEASURES: dict[str, Callable[..., Answer]] = {
    measure.__name__: measure
    for measure in (
        cell,
        all_levels,
        largest_ratio,
        all_settings,
        at_the_end,
        seconds_an_iteration,
        passes_an_example,
        neighbours_alike,
        old_weights,
        every_sampling_number,
        peak,
        come_together,
        best_alpha,
        few_examples,
        printed_reached,
    )
}
