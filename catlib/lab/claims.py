"""What the paper claims (claims.toml), and how each claim is measured from the tables of the study.

The claims and the numbers that the paper prints are typed by hand, in claims.toml and paper.py;
what was measured is computed. The remark in brackets after a verdict is worded here and in
:mod:`catlib.lab.compare`, all other sentences about an answer in templates/measures.j2
(:mod:`catlib.lab.pages`). A claim is open while the table that would answer it best is missing.
"""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pandas as pd

from . import compare
from .compare import (
    CONTRADICTED,
    HOLDS,
    IN_PART,
    NOT_SHOWN,
    NOT_TESTED,
    Verdict,
    all_reached,
    better,
    difference,
    ends,
    estimate_of,
    faster,
    faster_overall,
    judged,
    lead,
    overall,
    ratio,
    speed_table,
)
from .paper import PAPER, TRAINING_IMAGES, paper_table
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

    verdict: Verdict
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
            at = int(row["AT ticks"])
            cat = int(row["CAT ticks"])
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
    """A cell of Table 1 or 2: is CAT faster at one level, and by as much as the paper prints?"""
    speed = speed_table(records, [level / 100], metric).iloc[0]
    estimate = estimate_of(speed)
    numbers = {"speed": speed, "ratio": estimate, "all_reached": all_reached(speed)}
    verdict = faster(speed)
    outside = not estimate.low <= printed <= estimate.high
    resolved = estimate.low < estimate.high  # else all pairs are the same, to one tick
    if resolved and numbers["all_reached"] and outside and verdict.word in (HOLDS, NOT_SHOWN):
        word = IN_PART if verdict.word == HOLDS else NOT_SHOWN
        remark = f"the printed {printed:.2f} lies outside the interval"
        verdict = Verdict(word, "; ".join(filter(None, [verdict.remark, remark])))
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
    one = overall(records, levels_of(piece, metric), metric, cost, baseline, arm)
    numbers = {
        "overall": one,
        "metric": metric,
        "baseline": baseline,
        "arm": arm,
        "cost": compare.COSTS[cost],
    }
    return Answer(faster_overall(one, arm), numbers)


def up_to(records: pd.DataFrame, piece: Piece, factor: float) -> Answer:
    """Is CAT this many times faster at some level? At the level with the largest ratio."""
    speed = speed_table(records, levels_of(piece))
    speed = speed[speed.apply(all_reached, axis=1).astype(bool)]
    if speed.empty:
        return Answer(Verdict(NOT_TESTED, "no level was reached by every run"), {"count": 0})
    best = speed.loc[speed.ratio.idxmax()]
    estimate = estimate_of(best)
    if estimate.high < factor:
        verdict = Verdict(CONTRADICTED, f"at most {estimate.high:.2f} times")
    elif estimate.low > 1:
        verdict = Verdict(HOLDS, lead(estimate))
    else:
        verdict = Verdict(NOT_SHOWN, compare.how_much_faster(estimate))
    return Answer(verdict, {"count": len(speed), "ratio": estimate, "level": best.level})


def printed_range(
    records: pd.DataFrame, piece: Piece, dataset: str, metric: str = "robust_accuracy"
) -> Answer:
    """Is CAT faster by what the paper prints for a dataset, over all levels?"""
    printed = paper_table(dataset, metric)["AT/CAT"]
    one = overall(records, levels_of(piece, metric), metric)
    verdict = faster_overall(one)
    if one.ratio.high < printed.min():
        most = compare.how_much_faster(one.ratio)
        verdict = Verdict(CONTRADICTED, f"{most}; the whole printed range lies above")
    elif one.ratio.low > printed.max():
        verdict = Verdict(IN_PART, "faster than the paper prints")
    return Answer(verdict, {"overall": one})


def all_settings(records: pd.DataFrame, piece: Piece) -> Answer:
    """At how many levels, of accuracy and of robust accuracy, CAT is shown to be faster."""
    words = []
    for metric in compare.METRICS:
        speed = speed_table(records, levels_of(piece, metric), metric)
        words += [faster(row).word for _, row in speed.iterrows()]
    tested = [word for word in words if word != NOT_TESTED]
    counts = {word: words.count(word) for word in dict.fromkeys(words)}
    return Answer(together(tested, "levels"), {"counts": counts, "levels": len(words)})


def together(words: list[str], what: str) -> Verdict:
    """One verdict on "in every case", from the words for each case.

    It is contradicted where CAT is shown to be slower in some case, and holds in part where it is
    shown to be faster in some and slower in none.
    """
    faster_at = words.count(HOLDS)
    slower_at = words.count(CONTRADICTED)
    where = f"CAT faster at {faster_at}, slower at {slower_at} of {len(words)} {what}"
    if not words:
        return Verdict(NOT_TESTED)
    if slower_at:
        return Verdict(CONTRADICTED, where)
    if faster_at == len(words):
        return Verdict(HOLDS)
    return Verdict(IN_PART if faster_at else NOT_SHOWN, where)


def at_the_end(records: pd.DataFrame, piece: Piece, baseline: str, arm: str) -> Answer:
    """Does ``arm`` end with a higher robust accuracy? By PGD with restarts where that was done."""
    last = ends(records)
    metric = final_metric(last)
    gap, verdict = better(last, metric, baseline, arm)
    return Answer(verdict, _end_numbers(last, metric, gap, baseline, arm))


def competitive(
    records: pd.DataFrame, piece: Piece, baseline: str, arm: str, margin: float
) -> Answer:
    """Is ``arm`` no worse than ``baseline`` at the end, up to a margin of robust accuracy?"""
    last = ends(records)
    metric = final_metric(last)
    gap, verdict = better(last, metric, baseline, arm)
    if not compare.failures(last, baseline, arm):
        how_large = compare.how_much_better(gap, arm)
        if gap.low >= -margin:
            verdict = Verdict(HOLDS, how_large)
        elif gap.side(-margin) == "below":
            verdict = Verdict(CONTRADICTED, how_large)
        else:
            verdict = Verdict(NOT_SHOWN, how_large)
    return Answer(verdict, _end_numbers(last, metric, gap, baseline, arm))


def _end_numbers(last, metric: str, gap, baseline: str, arm: str) -> dict:
    return {
        "arms": {name: last.loc[name, metric] for name in (arm, baseline)},
        "difference": gap,
        "restarts": metric == "final_robust_accuracy",
    }


def final_metric(last: pd.DataFrame) -> str:
    """The column with the strongest attack at the end."""
    if "final_robust_accuracy" in last:
        return "final_robust_accuracy"
    return "robust_accuracy"


def seconds_an_iteration(records: pd.DataFrame, piece: Piece, margin: float) -> Answer:
    """Does an iteration of CAT take what one of AT takes, up to a margin?"""
    last = ends(records)
    seconds = last.seconds / last.iteration
    estimate = ratio(*seconds["CAT"].align(seconds["AT"], join="inner"))
    cheaper = 100 * (1 - estimate.low)
    dearer = 100 * (estimate.high - 1)
    span = f"between {cheaper:.0f} % less and {dearer:.0f} % more"
    if estimate.low > 1 - margin and estimate.high < 1 + margin:
        verdict = Verdict(HOLDS, span)
    elif estimate.side(1) == "across":
        verdict = Verdict(NOT_SHOWN, span)
    else:
        verdict = Verdict(CONTRADICTED, span)
    return Answer(verdict, {"ratio": estimate})


def passes_an_example(
    records: pd.DataFrame, piece: Piece, printed_steps: int, printed_restarts: int
) -> Answer:
    """How many forward-backward passes AT spends where normal training spends one."""
    last = records[records.arm == "AT"].iloc[-1]
    _, trial = piece.trials[0]
    passes = last.passes / last.iteration / trial.sampling_number
    with_restarts = printed_restarts * (printed_steps + 1) + 1  # after a run a pass finds its loss
    numbers = {
        "passes": passes,
        "steps": trial.steps,
        "printed_steps": printed_steps,
        "printed_passes": printed_steps + 1,
        "printed_restarts": printed_restarts,
        "with_restarts": with_restarts,
    }
    if passes >= 20:
        return Answer(Verdict(HOLDS), numbers)
    return Answer(Verdict(IN_PART, f"not with PGD-{trial.steps}"), numbers)


def neighbours_alike(rows: pd.DataFrame, piece: Piece) -> Answer:
    """Fig. 1: similarity of predictions one iteration apart, against another image of the class."""
    numbers = compare.similar_predictions(rows[rows.arm == "AT"])
    return Answer(numbers["verdict"], numbers)


def old_weights(rows: pd.DataFrame, piece: Piece) -> Answer:
    """Does an old weight still rank examples? Of AT, where age is independent of weight."""
    _, trial = piece.trials[0]
    images = trial.train_size or TRAINING_IMAGES[trial.dataset]
    one_epoch = images / trial.sampling_number
    numbers = compare.old_weights(rows[rows.arm == "AT"], one_epoch)
    return Answer(numbers["verdict"], numbers)


def every_sampling_number(records: pd.DataFrame, piece: Piece) -> Answer:
    """AT / CAT at each sampling number, over the levels that every run there reached."""
    ratios = {}
    verdicts = {}
    for number, part in records.groupby("sampling_number"):
        ratios[number] = overall(part, levels_of(piece))
        verdicts[number] = faster_overall(ratios[number]).word
    verdict = together(list(verdicts.values()), "sampling numbers")
    where = [f"k = {number}" for number, word in verdicts.items() if word == HOLDS]
    if verdict.word == IN_PART:
        verdict = Verdict(IN_PART, f"{', '.join(where)}; {verdict.remark}")
    return Answer(verdict, {"ratios": ratios})


def peak(records: pd.DataFrame, piece: Piece) -> Answer:
    """Is there a sampling number inside the range that ends above the smallest and the largest?"""
    cat = records[records.arm == "CAT"].sort_values("iteration")
    last = cat.groupby(["sampling_number", "seed"]).robust_accuracy.last()
    means = last.groupby("sampling_number").mean()
    best = means.idxmax()
    smallest = means.index[0]
    largest = means.index[-1]
    numbers = {"iterations": cat.iteration.max(), "means": means.to_dict()}
    if best == largest:
        remark = f"best at the largest one tried, k = {largest}: no threshold was met"
        return Answer(Verdict(NOT_SHOWN, remark), numbers)
    rise = difference(last[best], last[smallest])
    fall = difference(last[best], last[largest])
    if best != smallest and rise.side() == "above" and fall.side() == "above":
        return Answer(Verdict(HOLDS, f"at k = {best}"), numbers)
    remark = f"k = {best} leads k = {largest} by {fall.as_points()} points"
    return Answer(Verdict(NOT_SHOWN, remark), numbers)


def come_together(records: pd.DataFrame, piece: Piece) -> Answer:
    """Is the gap between CAT and AT at the end smaller at the largest sampling number?"""
    gaps = {}
    by_seed = {}
    for number, part in records.groupby("sampling_number"):
        last = ends(part).robust_accuracy
        gaps[number] = difference(last["CAT"], last["AT"])
        by_seed[number] = last["CAT"] - last["AT"]
    change = difference(by_seed[min(gaps)], by_seed[max(gaps)])
    how_large = f"the gap of the smallest k less that of the largest is {change.as_points()} points"
    return Answer(judged(change, how_large), {"gaps": gaps, "change": change})


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
    means = {}
    sides = {}
    for arm, alpha in ALPHAS.items():
        if arm in last:
            means[alpha] = last[arm].mean()
            sides[f"{alpha:g}"] = difference(last["CAT"], last[arm]).side()
    lower = [alpha for alpha, side in sides.items() if side == "above"]
    higher = [alpha for alpha, side in sides.items() if side == "below"]
    if higher:
        verdict = Verdict(CONTRADICTED, f"better: α = {', '.join(higher)}")
    elif len(lower) == len(sides) - 1:  # all but CAT itself
        verdict = Verdict(HOLDS)
    elif lower:
        verdict = Verdict(IN_PART, f"better than α = {', '.join(lower)}")
    else:
        verdict = Verdict(NOT_SHOWN, "no other value is shown better or worse")
    return Answer(verdict, {"means": means})


def few_examples(records: pd.DataFrame, piece: Piece, limited: float) -> Answer:
    """Do CAT's draws come from a limited share of the training images?"""
    last = ends(records)
    seen = last.coverage["CAT"].mean()
    arms = {arm: last.loc[arm] for arm in ("AT", "CAT")}
    remark = f"CAT draws {100 * seen:.1f} % of the images: no limited part of them was used"
    if seen > limited:
        return Answer(Verdict(NOT_TESTED, remark), {"arms": arms})
    _, verdict = better(last, "robust_accuracy", "AT", "CAT")
    word = CONTRADICTED if verdict.word == CONTRADICTED else HOLDS
    return Answer(Verdict(word, f"CAT draws {100 * seen:.1f} % of the images"), {"arms": arms})


def audit(records: pd.DataFrame, piece: Piece) -> pd.DataFrame:
    """:func:`catlib.lab.compare.audit` of a piece of the study."""
    _, trial = piece.trials[0]
    return compare.audit(records, trial.dataset)


def printed_reached(records: pd.DataFrame, piece: Piece) -> Answer:
    """Which readings reach the highest printed robust accuracy within the printed iterations."""
    verdict, numbers = compare.audit_verdict(audit(records, piece))
    return Answer(verdict, numbers)


MEASURES: dict[str, Callable[..., Answer]] = {
    measure.__name__: measure
    for measure in (
        cell,
        all_levels,
        up_to,
        printed_range,
        all_settings,
        at_the_end,
        competitive,
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
