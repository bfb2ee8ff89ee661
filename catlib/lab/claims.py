"""What the paper claims (claims.toml), and how each claim is measured from the tables of the study.

The claims and the numbers that the paper prints are typed by hand, in claims.toml and paper.py;
what was measured is computed. The remark in brackets after a verdict is worded here and in
:mod:`catlib.lab.compare`, all other sentences about an answer in templates/measures.j2
(:mod:`catlib.lab.pages`). A claim is open while the table that would answer it best is missing, or
where nothing in the study tests it; claims.toml then says why.
"""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from . import compare
from .compare import (
    CONTRADICTED,
    HOLDS,
    IN_PART,
    NO_PAIR,
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
    final_metric,
    how_much_faster,
    judged,
    overall,
    ratio,
    speed_table,
)
from .paper import PAPER, TRAINING_IMAGES, UNITS, paper_table
from .study.plan import Piece
from .summaries import Tables, piece_of

CONFIGURATION = Path(__file__).with_name("claims.toml")
COUNTED = {"iteration": "iterations", "passes": "passes", "seconds": "seconds"}


@dataclass(frozen=True)
class Claim:
    """A claim of the paper; the function ``measure`` answers it from each of the tables."""

    text: str
    paper: str
    group: str  # the heading under which it stands
    tables: tuple[str, ...] = ()  # the best one first
    measure: str = ""
    arguments: dict = field(default_factory=dict)
    rule: str = ""  # what follows "Holds", where a convention decides that
    asked: str = ""  # the question that it answers at the top of the page; most answer none there
    untested: str = ""  # why nothing in the study tests it


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
    return [claim for entry in configuration()["claims"] for claim in _claims_of(entry)]


def cell_claims() -> list[Claim]:
    """The claims that are a cell of the paper's Table 1 or 2."""
    return [claim for claim in all_claims() if claim.measure == "cell"]


def _claims_of(entry: dict) -> list[Claim]:
    """The claims of one entry of claims.toml: one, or one a cell of a table of the paper."""
    entry = dict(entry)
    entry["tables"] = tables_of(entry["tables"]) if "tables" in entry else ()
    entry["arguments"] = entry.pop("with", {})
    if "rule" in entry:
        entry["rule"] = entry["rule"].format(**entry["arguments"])
    dataset = entry.pop("cells_of", None)
    return [Claim(**entry)] if dataset is None else _cells(entry, dataset)


def _cells(entry: dict, dataset: str) -> list[Claim]:
    """A claim for every cell of one of the paper's two tables."""
    claims = []
    unit = UNITS[dataset]
    for part, metric in zip("ab", PAPER[dataset], strict=True):
        for level, row in paper_table(dataset, metric).iterrows():
            printed = row["AT/CAT"]
            times = f"{row['AT']:g} {unit} / {row['CAT']:g} {unit} = {printed:.2f}"
            ticks = f"{row['AT ticks']:.0f} and {row['CAT ticks']:.0f} ticks"
            arguments = {"metric": metric, "level": level, "printed": printed}
            cell = {
                "text": f"{entry['text']}{part}: {level} % {metric.replace('_', ' ')}",
                "paper": f"{times} ({ticks})",
                "arguments": arguments,
            }
            claims.append(Claim(**entry | cell))
    return claims


def answers(claim: Claim, tables: Tables) -> dict[str, Answer]:
    """What every table that is there says to a claim, by the table's name."""
    there = [name for name in claim.tables if name in tables and _has_arms(claim, tables[name])]
    return {name: answer(claim, tables, name) for name in there}


def answer(claim: Claim, tables: Tables, name: str) -> Answer:
    """What one of the tables says to a claim."""
    arguments = dict(claim.arguments)
    if "beside" in arguments:  # the tables of another dataset, to be compared with
        other = first_there(arguments["beside"], tables)
        arguments["beside"] = None if other is None else (tables[other], piece_of(other))
    return MEASURES[claim.measure](tables[name], piece_of(name), **arguments)


def _has_arms(claim: Claim, records: pd.DataFrame) -> bool:
    """Whether a table has the arms that a claim compares; one that is older than them has not."""
    compared = {claim.arguments[key] for key in ("baseline", "arm") if key in claim.arguments}
    return compared <= set(records.arm)


def open_piece(claim: Claim, tables: Tables) -> Piece | None:
    """The piece of the study that would answer a claim best, where it is not measured yet."""
    if not claim.tables or claim.tables[0] in tables:
        return None
    return piece_of(claim.tables[0])


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
    if numbers["all_reached"]:
        verdict = beside_the_printed(verdict, estimate, printed)
    return Answer(verdict, numbers)


def beside_the_printed(verdict: Verdict, estimate: compare.Estimate, printed: float) -> Verdict:
    """The verdict on "faster at all", with a remark where the printed ratio is another one."""
    if estimate.low == estimate.high or estimate.low <= printed <= estimate.high:
        return verdict
    word = verdict.word
    if estimate.high < printed:
        remark = f"smaller than printed: the interval ends at {estimate.high:.2f}"
        word = IN_PART if word == HOLDS else word
    else:
        remark = f"larger than printed: the interval begins at {estimate.low:.2f}"
    return Verdict(word, "; ".join(filter(None, [verdict.remark, remark])))


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
    return Answer(faster_overall(one, arm, COUNTED[cost]), numbers)


def larger_than(
    records: pd.DataFrame, piece: Piece, beside: tuple[pd.DataFrame, Piece] | None
) -> Answer:
    """Is the ratio over all levels larger than that of another dataset? By their intervals."""
    here = overall(records, levels_of(piece))
    there = None if beside is None else overall(beside[0], levels_of(beside[1]))
    numbers = {"here": here, "there": there}
    if there is None or not (here.levels and there.levels):
        return Answer(Verdict(NOT_SHOWN, "not both have a level that every run reached"), numbers)
    if not (here.ratio.has_enough_pairs and there.ratio.has_enough_pairs):
        return Answer(Verdict(NOT_SHOWN, "too few seeds"), numbers)
    if here.ratio.low > there.ratio.high:
        return Answer(Verdict(HOLDS), numbers)
    if here.ratio.high < there.ratio.low:
        return Answer(Verdict(CONTRADICTED), numbers)
    return Answer(Verdict(NOT_SHOWN, "the intervals overlap"), numbers)


def up_to(records: pd.DataFrame, piece: Piece, factor: float) -> Answer:
    """Is CAT this many times faster at some level?

    It holds where the largest ratio is at least the factor and is shown to be above 1, with its p
    corrected for the number of levels; and in part where the factor is only not ruled out. It is
    contradicted where the intervals of all levels end below the factor.
    """
    speed = speed_table(records, levels_of(piece))
    speed = speed[speed.apply(all_reached, axis=1).astype(bool)]
    if speed.empty:
        return Answer(Verdict(NOT_SHOWN, "no level was reached by every run"), {"count": 0})
    ratios = compare.corrected([estimate_of(row) for _, row in speed.iterrows()])
    best = int(np.argmax(speed.ratio))
    largest = ratios[best]
    numbers = {"count": len(speed), "ratio": largest, "level": speed.level.iloc[best]}
    most = speed.high.max()
    verdict = judged(largest, how_much_faster(largest), null=1)
    if verdict.word == HOLDS and largest.value < factor:
        verdict = Verdict(IN_PART, f"faster, {factor:g} times is not ruled out")
    if most < factor and largest.has_enough_pairs:
        verdict = Verdict(CONTRADICTED, f"at no level more than {most:.2f} times")
    return Answer(verdict, numbers)


def printed_range(
    records: pd.DataFrame, piece: Piece, dataset: str, metric: str = "robust_accuracy"
) -> Answer:
    """Is CAT faster by what the paper prints for a dataset? Over the levels that it prints."""
    printed = paper_table(dataset, metric)["AT/CAT"]
    levels = [level for level in levels_of(piece, metric) if round(100 * level) in printed.index]
    one = overall(records, levels, metric)
    verdict = faster_overall(one)
    mean = None
    if one.levels:
        there = printed[[round(100 * level) for level in one.levels]]
        mean = float(np.exp(np.log(there).mean()))
        verdict = beside_the_printed(verdict, one.ratio, mean)
    return Answer(verdict, {"overall": one, "printed": mean})


def all_settings(records: pd.DataFrame, piece: Piece) -> Answer:
    """In how many cells of the paper's table, of accuracy and of robust accuracy, CAT is faster.

    The levels that the paper does not print are counted apart; where it prints none of those that
    the study times, they decide.
    """
    printed: list[bool] = []
    ratios: list[compare.Estimate] = []
    _, trial = piece.trials[0]
    for metric in compare.METRICS:
        levels = levels_of(piece, metric)
        speed = speed_table(records, levels, metric)
        ratios += [estimate_of(row) if all_reached(row) else NO_PAIR for _, row in speed.iterrows()]
        cells = paper_table(trial.dataset, metric).index
        printed += [round(100 * level) in cells for level in levels]
    tested = compare.corrected(ratios)
    inside = [one for one, is_cell in zip(tested, printed, strict=True) if is_cell]
    outside = [one for one, is_cell in zip(tested, printed, strict=True) if not is_cell]
    numbers = {"printed": counted(inside), "not printed": counted(outside)}
    verdict = together(inside or outside, "printed levels" if inside else "levels")
    slower = numbers["not printed"].get(CONTRADICTED, 0)
    if inside and slower:
        beyond = f"slower at {slower} of {len(outside)} that the paper does not print"
        verdict = replace(verdict, remark="; ".join(filter(None, (verdict.remark, beyond))))
    return Answer(verdict, numbers)


def counted(tested: list[compare.Estimate]) -> dict[str, int]:
    """How often each word is said to "CAT is faster", of several ratios AT / CAT."""
    words = [judged(ratio, "", null=1).word for ratio in tested]
    return {word: words.count(word) for word in dict.fromkeys(words)}


def together(tested: list[compare.Estimate], what: str) -> Verdict:
    """One verdict on "CAT is faster in every case".

    It is contradicted where CAT is shown to be slower in some case, and holds in part where it is
    shown to be faster in some and slower in none.

    Args:
        tested: the ratio AT / CAT of each case, p corrected for their number;
            :data:`~catlib.lab.compare.NO_PAIR` where not every run reached the level.
        what: the cases, in words.
    """
    reached = [ratio for ratio in tested if ratio.pairs]
    if not tested:
        return Verdict(NOT_TESTED)
    if not reached:
        return Verdict(NOT_SHOWN, "no level was reached by every run")
    words = counted(tested)
    faster_at = words.get(HOLDS, 0)
    slower_at = words.get(CONTRADICTED, 0)
    where = f"CAT faster at {faster_at}, slower at {slower_at} of {len(tested)} {what}"
    if slower_at:
        return Verdict(CONTRADICTED, where)
    if faster_at == len(tested):
        return Verdict(HOLDS)
    if faster_at:
        return Verdict(IN_PART, where)
    if not any(ratio.has_enough_pairs for ratio in reached):
        where = f"{where}; {compare.too_few(reached[0])}"
    return Verdict(NOT_SHOWN, where)


def sooner(records: pd.DataFrame, piece: Piece, baseline: str, arm: str) -> Answer:
    """Does ``arm`` need fewer iterations than ``baseline``? Beside it, where both end."""
    last = ends(records)
    metric = final_metric(last)
    one = overall(records, levels_of(piece), baseline=baseline, arm=arm)
    verdict = faster_overall(one, arm)
    failed = compare.failures(last, baseline, arm)
    if failed:
        verdict = Verdict(NOT_SHOWN, failed)
    gap, _ = better(last, metric, baseline, arm)
    numbers = _end_numbers(last, metric, gap, baseline, arm)
    return Answer(verdict, numbers | {"overall": one, "baseline": baseline, "arm": arm})


def competitive(
    records: pd.DataFrame, piece: Piece, baseline: str, arm: str, margin: float
) -> Answer:
    """Is ``arm`` no worse than ``baseline`` at the end, up to a margin in points?"""
    last = ends(records)
    metric = final_metric(last)
    gap, verdict = better(last, metric, baseline, arm)
    if not compare.failures(last, baseline, arm):
        verdict = keeps_up(gap, arm, margin)
    return Answer(verdict, _end_numbers(last, metric, gap, baseline, arm))


def keeps_up(gap: compare.Estimate, arm: str, margin: float) -> Verdict:
    """What a difference at the end says to the claim that ``arm`` loses at most so many points."""
    how_large = compare.how_much_better(gap, arm)
    if not gap.has_enough_pairs:
        lead = "a lead: " if gap.is_lead() else ""
        return Verdict(NOT_SHOWN, f"{lead}{how_large}; {gap.pairs} seeds are too few")
    if gap.low >= -margin / 100:
        return Verdict(HOLDS, how_large)
    if gap.side(-margin / 100) == "below":
        return Verdict(CONTRADICTED, how_large)
    return Verdict(NOT_SHOWN, how_large)


def more_seen(records: pd.DataFrame, piece: Piece, baseline: str, arm: str) -> Answer:
    """Does ``arm`` draw more different images than ``baseline``? By the share seen at the end."""
    seen = ends(records).coverage
    gap = difference(seen[arm], seen[baseline])
    numbers = {"arms": {name: seen[name] for name in (arm, baseline)}, "difference": gap}
    return Answer(judged(gap, compare.how_much_better(gap, arm, "more", "fewer")), numbers)


def _end_numbers(last, metric: str, gap, baseline: str, arm: str) -> dict:
    return {
        "arms": {name: last.loc[name, metric] for name in (arm, baseline)},
        "difference": gap,
        "restarts": metric == "final_robust_accuracy",
    }


def seconds_an_iteration(records: pd.DataFrame, piece: Piece, margin: float) -> Answer:
    """Does an iteration of CAT take what one of AT takes, up to a margin in percent?"""
    last = ends(records)
    passes = last.passes / last.iteration / piece.trials[0][1].sampling_number
    seconds = last.seconds / last.iteration
    cat, at = seconds["CAT"].align(seconds["AT"], join="inner")
    estimate = ratio(cat, at)
    words = compare.how_much_faster(ratio(at, cat), cost="seconds an iteration")
    least = 1 - margin / 100
    most = 1 + margin / 100
    if least < estimate.low and estimate.high < most:
        verdict = Verdict(HOLDS, words)
    elif estimate.side(1) != "across" and (estimate.low > most or estimate.high < least):
        verdict = Verdict(CONTRADICTED, words)
    else:
        verdict = Verdict(NOT_SHOWN, words)
    return Answer(verdict, {"ratio": estimate, "passes": {a: passes[a] for a in ("AT", "CAT")}})


def passes_an_example(
    records: pd.DataFrame, piece: Piece, tens: float, printed_steps: int, printed_restarts: int
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
    if passes >= tens:
        return Answer(Verdict(HOLDS), numbers)
    return Answer(Verdict(IN_PART, f"not with PGD-{trial.steps}"), numbers)


def neighbours_alike(rows: pd.DataFrame, piece: Piece) -> Answer:
    """Fig. 1: similarity of predictions one iteration apart, against another image of the class."""
    numbers = compare.similar_predictions(rows[rows.arm == "AT"])
    return Answer(numbers["verdict"], numbers)


def old_examples(rows: pd.DataFrame, piece: Piece, margin: float) -> Answer:
    """Do adversarial examples of earlier iterations still fool the model? Of AT, second half."""
    rows = rows[(rows.arm == "AT") & (rows.iteration > rows.iteration.max() / 2)]
    rows = rows[rows.start == "fresh"] if (rows.start == "fresh").any() else rows
    if "old_success" not in rows:
        verdict = Verdict(NOT_TESTED, "this table was measured without it")
        return Answer(verdict, {"by_gap": {}, "difference": None})
    by_gap = rows.groupby("gap")[["success", "old_success"]].mean()
    oldest = rows[rows.gap == rows.gap.max()].groupby("seed")[["success", "old_success"]].mean()
    gap = difference(oldest.old_success, oldest.success)
    verdict = keeps_up(gap, "the older example", margin)
    return Answer(verdict, {"by_gap": by_gap.to_dict("index"), "difference": gap})


def old_weights(rows: pd.DataFrame, piece: Piece) -> Answer:
    """Does an old weight still rank examples? Of AT, where age is independent of weight."""
    _, trial = piece.trials[0]
    images = trial.train_size or TRAINING_IMAGES[trial.dataset]
    one_epoch = images / trial.sampling_number
    numbers = compare.old_weights(rows[rows.arm == "AT"], one_epoch)
    return Answer(numbers["verdict"], numbers)


def every_sampling_number(
    records: pd.DataFrame, piece: Piece, metric: str = "robust_accuracy"
) -> Answer:
    """AT / CAT at each sampling number, over the levels that every run there reached."""
    ratios = {}
    for number, part in records.groupby("sampling_number"):
        ratios[number] = overall(part, levels_of(piece, metric), metric)
    tested = compare.corrected([one.ratio for one in ratios.values()])
    verdict = together(tested, "sampling numbers")
    if verdict.word == IN_PART:
        sides = zip(ratios, tested, strict=True)
        where = [f"k = {number}" for number, ratio in sides if ratio.side(1) == "above"]
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
    rise = difference(last[best], last[smallest])
    if best == largest:
        remark = f"best at the largest one tried, k = {largest}: no threshold was met"
        if rise.side() == "above":
            return Answer(Verdict(IN_PART, f"it rises; {remark}"), numbers)
        return Answer(Verdict(NOT_SHOWN, remark), numbers)
    fall = difference(last[best], last[largest])
    if best != smallest and rise.side() == "above" and fall.side() == "above":
        return Answer(Verdict(HOLDS, f"at k = {best}"), numbers)
    remark = f"k = {best} leads k = {largest} by {fall.as_points()} points"
    return Answer(Verdict(NOT_SHOWN, remark), numbers)


def come_together(records: pd.DataFrame, piece: Piece) -> Answer:
    """Is the gap between CAT and AT at the end smaller in size at the largest sampling number?

    It is where the two gaps' difference and their sum have the same sign, and larger where they
    have opposite ones; so both must be shown.
    """
    gaps = {}
    by_seed = {}
    for number, part in records.groupby("sampling_number"):
        last = ends(part).robust_accuracy
        gaps[number] = difference(last["CAT"], last["AT"])
        by_seed[number] = last["CAT"] - last["AT"]
    smallest = min(gaps)
    largest = max(gaps)
    change = difference(by_seed[smallest], by_seed[largest])
    total = difference(by_seed[smallest], -by_seed[largest])
    where = (
        f"from {gaps[smallest].as_points()} points at k = {smallest} "
        f"to {gaps[largest].as_points()} at k = {largest}"
    )
    sides = {change.side(), total.side()}
    if not change.has_enough_pairs:
        verdict = Verdict(NOT_SHOWN, f"{where}; {compare.too_few(change)}")
    elif "across" in sides:
        verdict = Verdict(NOT_SHOWN, where)
    elif len(sides) == 1:
        verdict = Verdict(HOLDS, where)
    else:
        verdict = Verdict(CONTRADICTED, where)
    return Answer(verdict, {"gaps": gaps, "change": change, "total": total})


def best_alpha(records: pd.DataFrame, piece: Piece) -> Answer:
    """Does another alpha than the paper's need more iterations, or fewer?"""
    alphas = {arm: trial.alpha for arm, trial in piece.trials if arm.startswith("alpha ")}
    ratios = {}
    for arm, alpha in sorted(alphas.items(), key=lambda item: item[1]):
        if arm in set(records.arm):
            ratios[alpha] = overall(records, levels_of(piece), baseline=arm, arm="CAT")
    tested = compare.corrected([one.ratio for one in ratios.values()])
    sides = {f"{alpha:g}": one.side(1) for alpha, one in zip(ratios, tested, strict=True)}
    slower = [alpha for alpha, side in sides.items() if side == "above"]
    quicker = [alpha for alpha, side in sides.items() if side == "below"]
    if quicker:
        verdict = Verdict(CONTRADICTED, f"sooner: α = {', '.join(quicker)}")
    elif sides and len(slower) == len(sides):
        verdict = Verdict(HOLDS)
    elif slower:
        verdict = Verdict(IN_PART, f"sooner than α = {', '.join(slower)}")
    else:
        verdict = Verdict(NOT_SHOWN, "no other value is shown to be slower or faster")
    return Answer(verdict, {"ratios": ratios})


def few_examples(records: pd.DataFrame, piece: Piece, limited: float, margin: float) -> Answer:
    """Do CAT's draws come from a limited share of the images, and is it as robust as AT then?"""
    last = ends(records)
    seen = last.coverage["CAT"].mean()
    arms = {arm: last.loc[arm] for arm in ("AT", "CAT")}
    remark = f"CAT draws {100 * seen:.1f} % of the images"
    if 100 * seen > limited:
        whole = f"{remark}: no limited part of them was used"
        return Answer(Verdict(NOT_TESTED, whole), {"arms": arms})
    gap = difference(last.robust_accuracy["CAT"], last.robust_accuracy["AT"])
    verdict = keeps_up(gap, "CAT", margin)
    return Answer(Verdict(verdict.word, f"{remark}; {verdict.remark}"), {"arms": arms})


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
        larger_than,
        up_to,
        printed_range,
        all_settings,
        sooner,
        competitive,
        more_seen,
        seconds_an_iteration,
        passes_an_example,
        neighbours_alike,
        old_examples,
        old_weights,
        every_sampling_number,
        peak,
        come_together,
        best_alpha,
        few_examples,
        printed_reached,
    )
}
