"""The claims of the paper beside what was measured: computed from the tables of the study, and written as pages.

    python -m catlib.lab pages    # data/results/{summary,final}.csv, data/results/README.md, the README's results

Nothing here is typed by hand but the paper's own words and numbers. A claim whose table is missing is open, and
its row names the piece, hence the command, that fills it.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from catlib.data import ROOT

from .figures import (
    COLOURS,
    COSTS,
    METRICS,
    PAPER,
    costs,
    curves,
    measured,
    paper_table,
    ratio_interval,
    readable,
    speed_table,
    use_style,
)
from .paths import RESULTS
from .runs import write_whole
from .study.plan import Piece, pieces_of, profiles

README = ROOT / "README.md"
KEYS = ["table", "sampling_number", "baseline", "arm"]
Tables = dict[str, pd.DataFrame]
Answer = tuple[str, str]  # ours, verdict


# ------------------------------------------------------------------ tables of the study, and two computed from them


def all_pieces() -> list[Piece]:
    return [piece for profile in profiles() for piece in pieces_of(profile)]


def piece_of(table: str) -> Piece:
    name = table.removesuffix("_staleness")
    return next(piece for piece in all_pieces() if piece.table == name)


def levels_of(table: str, metric: str) -> list[float]:
    """The accuracies, in percent, that the study times in this table."""
    return piece_of(table).levels[metric]


def load_tables(results: Path) -> Tables:
    """Every table of the study in which each arm has two seeds or more, by name."""
    tables = {}
    for piece in all_pieces():
        grid = list(piece.options.get("grid", {}))
        arms = {(arm, *(getattr(trial, name) for name in grid)) for arm, trial in piece.trials}
        for name in (piece.table, f"{piece.table}_staleness"):
            if (path := results / f"{name}.csv").exists():
                table = pd.read_csv(path, comment="#")
                seeds = table.groupby(["arm", *grid]).seed.nunique()
                if piece.kind == "finals" or (len(seeds) == len(arms) and seeds.min() > 1):
                    tables[name] = table
    return tables


def pairs_of(piece: Piece, table: pd.DataFrame) -> list[tuple[str, str]]:
    """Which arms are compared: those that the configuration pairs, else every arm with the first."""
    arms = list(dict.fromkeys(table.arm))
    return piece.options.get("pairs") or [(arms[0], arm) for arm in arms[1:]]


def comparisons(tables: Tables) -> Iterator[tuple]:
    """(table, sampling number or NaN, baseline, arm, levels, records) of every comparison of the study."""
    for piece in all_pieces():
        if piece.kind == "train" and piece.table in tables:
            table = tables[piece.table]
            for number, records in (
                table.groupby("sampling_number")
                if "sampling_number" in table
                else [(math.nan, table)]
            ):
                for baseline, arm in pairs_of(piece, table):
                    yield piece.table, number, baseline, arm, piece.levels, records


def summary(tables: Tables) -> pd.DataFrame:
    """A row a comparison, level and cost: what the two took on the mean, and the ratio baseline / arm, paired by seed."""
    rows = []
    for table, number, baseline, arm, levels, records in comparisons(tables):
        names = {
            name + suffix: f"{role}_{what}"
            for name, role in ((baseline, "baseline"), (arm, "arm"))
            for suffix, what in (("", "cost"), (" reached", "reached"))
        }
        for metric in levels:
            for cost in COSTS:
                speed = speed_at(records, levels[metric], metric, baseline, arm, cost)
                rows.append(
                    speed.rename(columns=names).assign(
                        table=table, sampling_number=number, baseline=baseline, arm=arm
                    )
                )
    whole = pd.concat(rows, ignore_index=True).round(3) if rows else pd.DataFrame(columns=KEYS)
    return whole[KEYS + [name for name in whole if name not in KEYS]]


def final(tables: Tables) -> pd.DataFrame:
    """A row a comparison: where the arm stood at the last iteration, and the difference to its baseline, paired by seed."""
    rows = []
    for table, number, baseline, arm, _, records in comparisons(tables):
        last = ends(records)
        a, b = last.loc[baseline], last.loc[arm]
        row = dict(zip(KEYS, (table, number, baseline, arm), strict=True)) | {
            "seeds": len(b),
            "iteration": b.iteration.max(),
        }
        for name in ("accuracy", "robust_accuracy", "batch_accuracy", "final_robust_accuracy"):
            if name in last:
                row |= {name: b[name].mean(), f"{name}_sd": b[name].std()}
        row |= dict(
            zip(
                ("difference", "low", "high"),
                difference(b.robust_accuracy, a.robust_accuracy),
                strict=True,
            )
        )
        rows.append(row | {"coverage": b.coverage.mean()})
    return pd.DataFrame(rows).round(4)


# ------------------------------------------------------------------ what numbers say


def speed_at(
    records: pd.DataFrame,
    levels,
    metric="robust_accuracy",
    baseline="AT",
    arm="CAT",
    cost="iteration",
) -> pd.DataFrame:
    """The speed table of two arms at these levels, in percent."""
    return speed_table(
        records,
        [level / 100 for level in levels],
        metric,
        cost,
        by="arm",
        baseline=baseline,
        method=arm,
    )


def ends(records: pd.DataFrame) -> pd.DataFrame:
    """The last row of every run, by arm and seed."""
    return records.sort_values("iteration").groupby(["arm", "seed"]).last()


def difference(first: pd.Series, second: pd.Series) -> tuple[float, float, float]:
    """The mean of first - second over the seeds of both, and its bootstrap interval."""
    first, second = first.align(second, join="inner")
    return tuple(
        math.log(value) for value in ratio_interval(np.exp(first), np.exp(second))
    )  # a ratio's logarithm


def overall(records, levels, metric, cost, baseline, arm) -> tuple[float, float, float, int]:
    """One ratio for all levels: a seed's geometric mean over the levels that both reached, then over seeds as ever."""
    logs = []
    for level in levels:
        table = costs(records, level / 100, metric, "arm").pivot(
            index="seed", columns="arm", values=cost
        )
        logs.append(np.log(table[baseline]) - np.log(table[arm]))
    each = pd.concat(logs, axis=1).mean(axis=1).dropna()
    return *ratio_interval(np.exp(each), np.ones(len(each))), len(each)


def interval(ratio: float, low: float, high: float, digits: int = 2) -> str:
    if math.isnan(ratio):
        return "not reached by both"
    return f"{ratio:.{digits}f}" + (
        "" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    )


def points(values) -> str:
    """A difference of accuracies and its interval, in percentage points."""
    mean, low, high = (100 * value for value in values)
    return f"{mean:+.1f}" + ("" if math.isnan(low) else f" [{low:+.1f}, {high:+.1f}]")


def percent(values: pd.Series) -> str:
    """Mean and standard deviation over seeds."""
    return f"{100 * values.mean():.1f} % ± {100 * values.std():.1f}"


def judged(low: float, high: float, seeds: int, above: str, below: str, zero: float = 0) -> str:
    """What an interval says: above zero, below, or nothing; with few seeds all on one side by luck it says little."""
    if seeds < 3 or math.isnan(low):
        return "too few seeds to say"
    if low <= zero <= high:
        return "no difference shown"
    return (above if low > zero else below) + (
        f" ({seeds} seeds: a lead, no proof)" if seeds < 5 else ""
    )


def faster(low: float, high: float, seeds: int) -> str:
    """What the interval of a ratio AT / CAT says."""
    return judged(low, high, seeds, "CAT faster", "CAT slower", zero=1)


# ------------------------------------------------------------------ measures: (records, name of the table) -> (ours, verdict)


def cell(metric: str, level: float, printed: float) -> Callable:
    """A cell of Table 1 or 2."""

    def measure(records, table):
        speed = speed_at(records, [level], metric).iloc[0]
        took = ", ".join(
            f"{name} {'never' if math.isnan(speed[name]) else f'{speed[name]:.0f} iterations'}"
            for name in ("AT", "CAT")
        )
        ours = f"{took} ({speed['AT reached']} and {speed['CAT reached']} seeds)"
        if math.isnan(speed.ratio):
            return ours, "not reached by both"
        verdict = faster(speed.low, speed.high, speed.pairs)
        if speed.pairs > 2:
            verdict += f"; the printed ratio lies {'inside' if speed.low <= printed <= speed.high else 'outside'} the interval"
        return f"{ours}: {interval(speed.ratio, speed.low, speed.high)}", verdict

    return measure


def all_levels(metric="robust_accuracy", baseline="AT", arm="CAT", cost="iteration") -> Callable:
    """One ratio over all levels of a metric."""

    def measure(records, table):
        ratio, low, high, seeds = overall(
            records, levels_of(table, metric), metric, cost, baseline, arm
        )
        ours = f"{baseline} / {arm}, {COSTS[cost]}, all levels of {metric.replace('_', ' ')}: {interval(ratio, low, high)}"
        return f"{ours}, {seeds} seeds", judged(
            low, high, seeds, "faster with CAT", "slower with CAT", zero=1
        )

    return measure


def up_to_three(records, table) -> Answer:
    speed = speed_at(records, levels_of(table, "robust_accuracy")).dropna(subset="ratio")
    if speed.empty:
        return "no level was reached by both", "not settled"
    best = speed.loc[speed.ratio.idxmax()]
    return (
        f"largest of {len(speed)} ratios: {interval(best.ratio, best.low, best.high)}, at {best.level:g} % robust accuracy",
        judged(best.low, best.high, best.pairs, "holds", "does not hold: below 3", zero=3),
    )


def all_settings(records, table) -> Answer:
    words = [
        faster(row.low, row.high, row.pairs)
        for metric in ("accuracy", "robust_accuracy")
        for row in speed_at(records, levels_of(table, metric), metric)
        .dropna(subset="ratio")
        .itertuples()
    ]
    ours = "; ".join(
        f"{word} at {words.count(word)} of {len(words)} levels" for word in dict.fromkeys(words)
    )
    return ours or "no level was reached by both", "holds" if set(words) == {
        "CAT faster"
    } else "does not hold at every level"


def at_the_end(baseline: str, arm: str, good: str, bad: str) -> Callable:
    """Robust accuracies at the last iteration; by PGD with restarts where the study did that."""

    def measure(records, table):
        last = ends(records)
        metric = "final_robust_accuracy" if "final_robust_accuracy" in last else "robust_accuracy"
        a, b = last.loc[baseline, metric], last.loc[arm, metric]
        mean, low, high = difference(b, a)
        attack = ", by PGD-20 with restarts" if metric.startswith("final") else ""
        return (
            f"at the end{attack}: {arm} {percent(b)}, {baseline} {percent(a)}: {points((mean, low, high))} points",
            judged(low, high, len(b), good, bad),
        )

    return measure


def overhead(records, table) -> Answer:
    last = ends(records)
    per = last.seconds / last.iteration
    ratio, low, high = ratio_interval(*per["CAT"].align(per["AT"], join="inner"))
    return (
        f"seconds of a CAT iteration / an AT iteration: {interval(ratio, low, high)}",
        judged(low, high, len(per["CAT"]), "dearer", "cheaper", zero=1),
    )


def dearer(records, table) -> Answer:
    at = records[records.arm == "AT"].iloc[-1]
    passes = at.passes / at.iteration / piece_of(table).trials[0][1].sampling_number
    return (
        f"{passes:.0f} passes an example and iteration with this attack, against 1",
        "holds: it is arithmetic",
    )


def similarity(rows, table) -> Answer:
    mine = (
        rows[(rows.gap == 1) & (rows.arm == "AT")]
        .groupby(["start", "seed"])[["mean", "agreement", "control"]]
        .mean()
    )
    words = [
        f"{start} start {seeds['mean'].mean():.3f} ± {seeds['mean'].std():.3f}, against {seeds.control.mean():.3f} with "
        f"another image of the class; the same predicted class for {100 * seeds.agreement.mean():.0f} %"
        for start, seeds in mine.groupby("start")
    ]
    low, high = difference(mine.loc["fresh", "mean"], mine.loc["fresh", "control"])[1:]
    return (
        "mean cosine similarity over AT runs: " + "; ".join(words),
        judged(
            low,
            high,
            len(mine.loc["fresh"]),
            "holds: above what the class explains",
            "does not hold",
        ),
    )


def stale(rows, table) -> Answer:
    # of AT, where an example's age has nothing to do with its weight
    late = rows[
        (rows.iteration > rows.iteration.max() / 2) & (rows.alpha == 0.5) & (rows.arm == "AT")
    ]
    by_age = late.groupby("age").rank_correlation.mean()
    ours = ", ".join(f"{value:.2f} at age {age}+" for age, value in by_age.items())
    verdict = (
        "holds" if by_age.min() > 0.5 else "fades with age" if by_age.iloc[0] > 0.5 else "weak"
    )
    return f"rank correlation of stored weight and fresh gain, α = 0.5: {ours}", verdict


def by_number(records, table) -> Answer:
    words, sure = [], 0
    for number, group in records.groupby("sampling_number"):
        ratio, low, high, seeds = overall(
            group, levels_of(table, "robust_accuracy"), "robust_accuracy", "iteration", "AT", "CAT"
        )
        words.append(f"k = {number}: {interval(ratio, low, high)}")
        sure += faster(low, high, seeds).startswith("CAT faster")
    return "AT / CAT: " + "; ".join(words), f"shown at {sure} of {len(words)} sampling numbers"


def peak(records, table) -> Answer:
    cat = records[records.arm == "CAT"].sort_values("iteration")
    budget = (
        cat.groupby("sampling_number").passes.max().min()
    )  # what the smallest sampling number spends in all

    def means(part):
        return (
            part.groupby(["sampling_number", "seed"])
            .robust_accuracy.last()
            .groupby("sampling_number")
            .mean()
        )

    def words(values):
        return ", ".join(f"k = {k}: {100 * value:.1f} %" for k, value in values.items())

    at_end, at_budget = means(cat), means(cat[cat.passes <= budget])
    inside = at_end.idxmax() not in (at_end.index[0], at_end.index[-1])
    return (
        f"robust accuracy after {cat.iteration.max()} iterations: {words(at_end)}; after {budget:,} passes: "
        f"{words(at_budget)}",
        f"best k = {at_end.idxmax()} by iterations, {'a peak inside' if inside else 'at the end of'} the range; "
        f"k = {at_budget.idxmax()} by passes",
    )


def approach(records, table) -> Answer:
    gaps = {}
    for number, group in records.groupby("sampling_number"):
        last = ends(group).robust_accuracy
        gaps[number] = difference(last["CAT"], last["AT"])
    smallest, largest = (abs(gaps[k][0]) for k in (min(gaps), max(gaps)))
    return (
        "CAT - AT at the end, points: "
        + "; ".join(f"k = {k}: {points(gap)}" for k, gap in gaps.items()),
        f"the gap is {'smaller' if largest < smallest else 'not smaller'} at the largest k",
    )


def alphas(records, table) -> Answer:
    arms = {
        "alpha 0": 0,
        "alpha 0.25": 0.25,
        "CAT": 0.5,
        "alpha 0.75": 0.75,
        "alpha 0.9": 0.9,
        "alpha 0.99": 0.99,
    }
    last = ends(records).robust_accuracy
    gaps = {
        alpha: difference(last["CAT"], last[arm])
        for arm, alpha in arms.items()
        if arm != "CAT" and arm in last
    }
    sides = {
        "better": [alpha for alpha, (_, low, _) in gaps.items() if low > 0],
        "worse": [alpha for alpha, (_, _, high) in gaps.items() if high < 0],
    }
    shown = "; ".join(
        f"0.5 shown {side} than {', '.join(f'{a:g}' for a in values)}"
        for side, values in sides.items()
        if values
    )
    ours = ", ".join(
        f"α = {alpha:g}: {100 * last[arm].mean():.1f} %"
        for arm, alpha in arms.items()
        if arm in last
    )
    return f"robust accuracy at the end: {ours}", shown or "no other value is shown better or worse"


def few_examples(records, table) -> Answer:
    last = ends(records)
    seen = {arm: last.loc[arm].coverage for arm in ("AT", "CAT")}
    low, high = difference(seen["CAT"], seen["AT"])[1:]
    words = [
        f"{arm} {percent(seen[arm])} for a robust accuracy of {percent(last.loc[arm].robust_accuracy)}"
        for arm in seen
    ]
    return "training images seen: " + "; ".join(words), judged(
        low, high, len(seen["CAT"]), "CAT saw more", "CAT saw fewer"
    )


def audit(records: pd.DataFrame, table: str) -> pd.DataFrame:
    """A row an arm and printed robust accuracy: was it reached within the printed iterations, on test, on training images?"""
    dataset = piece_of(table).trials[0][1].dataset
    printed, every = (
        paper_table(dataset),
        10 if dataset == "cifar10" else 1,
    )  # iterations between the paper's evaluations
    rows = []
    for arm, group in records.groupby("arm", sort=False):
        for level, row in printed.iterrows():
            within = int(row[f"{arm.split(',')[0]} ticks"]) * every
            best = (
                group[group.iteration <= within]
                .groupby("seed")[["robust_accuracy", "batch_accuracy"]]
                .max()
            )
            reached = best.median() >= level / 100
            rows.append(
                {
                    "arm": arm,
                    "level": level,
                    "iterations": within,
                    "test": best.robust_accuracy.mean(),
                    "training": best.batch_accuracy.mean(),
                    "reached on test": reached.robust_accuracy,
                    "reached in training": reached.batch_accuracy,
                }
            )
    return pd.DataFrame(rows)


def printed_reached(records, table) -> Answer:
    """Which readings reach the highest printed robust accuracy within the printed iterations."""
    rows = audit(records, table)
    top = rows[rows.level == rows.level.max()]
    names = "; ".join(top.arm[top["reached on test"]]) or "none"
    return (
        f"readings that reach {top.level.max():g} % on test images: {names}, of {len(top)}",
        "not reproduced by any reading tried"
        if names == "none"
        else "reproduced by the readings named",
    )


# ------------------------------------------------------------------ the claims


@dataclass(frozen=True)
class Claim:
    """A claim of the paper; ``measure`` answers it from each of the tables, the best one first."""

    text: str
    paper: str
    measure: Callable[[pd.DataFrame, str], Answer]
    tables: tuple[str, ...]


MNIST, CIFAR = ("paper_mnist_tables", "cpu_mnist_tables"), ("paper_cifar10_tables",)
CONTROLS, CHEAP = (
    ("paper_cifar10_controls", "cpu_mnist_controls"),
    ("paper_cifar10_cheap", "cpu_mnist_cheap"),
)
NUMBERS, CIFAR_NUMBERS = (
    ("paper_mnist_sampling_number", "cpu_mnist_sampling_number"),
    ("paper_cifar10_sampling_number",),
)
AUDIT = ("paper_mnist_audit", "cpu_mnist_audit")
STRONG = ("cpu_mnist_tables_0.3",)
CONSTANT = ("cpu_mnist_tables_constant",)  # epsilon at its full size from the first iteration on


def table_claims() -> list[Claim]:
    """A claim for every cell of Tables 1 and 2."""
    claims = []
    for number, dataset, tables in (
        (1, "mnist", (*MNIST, *CONSTANT, *STRONG)),
        (2, "cifar10", CIFAR),
    ):
        for part, metric in zip("ab", PAPER[dataset], strict=True):
            for level, row in paper_table(dataset, metric).iterrows():
                printed = f"AT {row['AT ticks']:.0f}, CAT {row['CAT ticks']:.0f} ticks: {row['AT/CAT']:.2f}"
                text = f"Table {number}{part}: {level} % {metric.replace('_', ' ')}"
                claims.append(Claim(text, printed, cell(metric, level, row["AT/CAT"]), tables))
    return claims


def claims() -> list[Claim]:
    """Every claim of the paper, in the order of the page."""

    def similar(dataset, suffix=""):
        return tuple(f"{profile}_{dataset}_similarity{suffix}" for profile in ("paper", "cpu"))

    competitive = at_the_end("AT", "CAT", "CAT better", "CAT worse")
    near = "Predictions on adversarial examples of neighbouring iterations are similar"
    threshold = "Speed rises with the sampling number up to a threshold and then falls"
    combines = "CAT combines with any adversarial training (abstract)"
    printed = "The printed robust accuracies can be had in the printed iterations"
    return [
        Claim(
            "CAT is faster than AT by up to 3 times (abstract)",
            "3.16 at 60 % on CIFAR-10, one cell",
            up_to_three,
            CIFAR,
        ),
        Claim("... and on MNIST", "1.05 to 1.14 (robust accuracy)", up_to_three, MNIST),
        Claim(
            "Accuracy costs 2 to 5 times less on CIFAR-10 (3.2)",
            "2.33 to 4.81",
            all_levels("accuracy"),
            CIFAR,
        ),
        *table_claims(),
        Claim(
            "CAT converges faster in all settings: MNIST (3.2)", "all 8 cells", all_settings, MNIST
        ),
        Claim("... if ε does not grow at first", "all 8 cells", all_settings, CONSTANT),
        Claim(
            "CAT converges faster in all settings: CIFAR-10 (3.2)",
            "all 7 cells",
            all_settings,
            CIFAR,
        ),
        Claim("Competitive defence effect: MNIST (abstract)", "no number", competitive, MNIST),
        Claim("... if ε does not grow at first", "no number", competitive, CONSTANT),
        Claim("Competitive defence effect: CIFAR-10 (abstract)", "no number", competitive, CIFAR),
        Claim(
            "A CAT iteration costs what an AT iteration costs (ticks of Table 1)",
            "12.9 s against 12.8 s",
            overhead,
            MNIST,
        ),
        Claim(
            "AT costs tens of times more than normal training (2.1)", "tens of times", dearer, MNIST
        ),
        Claim(f"{near}: MNIST (Fig. 1)", "a figure", similarity, similar("mnist")),
        Claim(f"{near}: CIFAR-10 (Fig. 1)", "a figure", similarity, similar("cifar10")),
        Claim(
            "So an old weight estimates today's importance: MNIST (2.2)",
            "no number",
            stale,
            similar("mnist", "_staleness"),
        ),
        Claim(
            "So an old weight estimates today's importance: CIFAR-10 (2.2)",
            "no number",
            stale,
            similar("cifar10", "_staleness"),
        ),
        Claim(
            "A limited part of the examples gives most of the performance (abstract)",
            "no number",
            few_examples,
            CONTROLS,
        ),
        Claim(
            "The gain is mainly from drawing informative examples (3.2): weights or none, both balanced",
            "no number",
            at_the_end("balance only", "CAT", "weights help", "weights harm"),
            CONTROLS,
        ),
        Claim(
            "... weights alone against AT",
            "no number",
            at_the_end("AT", "weights only", "weights help", "weights harm"),
            CONTROLS,
        ),
        Claim(
            "... against the opposite weights, easy examples first",
            "no number",
            at_the_end(
                "inverted weights", "CAT", "hard examples are better", "easy examples are better"
            ),
            CONTROLS,
        ),
        Claim(
            "Class-level balance increases diversity and helps (2.2)",
            "no number",
            at_the_end("AT", "balance only", "balance helps", "balance harms"),
            CONTROLS,
        ),
        Claim("α = 0.5 (3.1)", "the value used", alphas, CONTROLS),
        Claim(
            "CAT needs fewer iterations at every sampling number: MNIST (Fig. 2)",
            "a figure",
            by_number,
            NUMBERS,
        ),
        Claim(
            "CAT needs fewer iterations at every sampling number: CIFAR-10 (Fig. 3)",
            "a figure",
            by_number,
            CIFAR_NUMBERS,
        ),
        Claim(f"{threshold}: MNIST (3.2)", "a figure", peak, NUMBERS),
        Claim(f"{threshold}: CIFAR-10 (3.2)", "peak around 256", peak, CIFAR_NUMBERS),
        Claim(
            "With a large sampling number weighted and random draws come together (3.2)",
            "no number",
            approach,
            NUMBERS,
        ),
        Claim(
            "The speed-up is larger on CIFAR-10 than on MNIST (3.2)",
            "up to 3.16 against 1.14",
            all_levels(),
            CIFAR,
        ),
        Claim(
            f"{combines}: with PGD-2",
            "no number",
            all_levels(baseline="PGD-2", arm="CAT + PGD-2", cost="passes"),
            CHEAP,
        ),
        Claim(
            f"{combines}: with FGSM and a random start",
            "no number",
            all_levels(baseline="FGSM-RS", arm="CAT + FGSM-RS", cost="passes"),
            CHEAP,
        ),
        Claim(f"{printed}: MNIST", "90 % after 84 (AT), 73 (CAT)", printed_reached, AUDIT),
        Claim(
            f"{printed}: CIFAR-10",
            "60 % after 790 (AT), 250 (CAT)",
            printed_reached,
            ("paper_cifar10_audit",),
        ),
    ]


def answer(claim: Claim, tables: Tables) -> Answer:
    """From every table that is there; and what is open where the best one is not."""
    there = [name for name in claim.tables if name in tables]
    answers = {name: claim.measure(tables[name], name) for name in there}
    ours = [f"{label(name)}: {text}" for name, (text, _) in answers.items()]
    verdicts = [
        verdict if len(there) == 1 else f"{label(name)}: {verdict}"
        for name, (_, verdict) in answers.items()
    ]
    if claim.tables[0] not in tables:
        piece = piece_of(claim.tables[0])
        verdicts.append(
            f"**open**{' with ResNet-18' if piece.profile == 'paper' else ''}: [`{piece.table}`](#open)"
        )
    return "<br>".join(ours) or "—", "<br>".join(verdicts)


def label(name: str) -> str:
    """What a table was measured on, in a few words."""
    trial = piece_of(name).trials[0][1]
    epsilon = (
        f"{255 * trial.epsilon:.0f}/255" if trial.dataset == "cifar10" else f"{trial.epsilon:g}"
    )
    images = f", {trial.train_size:,} training images" if trial.train_size else ""
    return f"{trial.model}, {'growing ' if trial.epsilon_warm_up else ''}ε = {epsilon}{images}"


# ------------------------------------------------------------------ the pages


def verdict(tables: Tables) -> str:
    """The finding in three sentences, from the best tables that are there."""
    said = (sentence(tables) for sentence in (speed_sentence, parts_sentence, three_times_sentence))
    return "\n".join(f"- {sentence}" for sentence in said if sentence)


def speed_sentence(tables: Tables) -> str:
    if not (name := next((name for name in MNIST if name in tables), None)):
        return ""
    printed = paper_table("mnist")["AT/CAT"]
    levels = levels_of(name, "robust_accuracy")
    ratio, low, high, seeds = overall(
        tables[name], levels, "robust_accuracy", "iteration", "AT", "CAT"
    )
    finding = {
        "CAT faster": "CAT reaches a robust accuracy in fewer iterations than vanilla AT",
        "CAT slower": "CAT needs more iterations than vanilla AT for a robust accuracy",
    }.get(
        faster(low, high, seeds).split(" (")[0],
        "no difference in iterations between CAT and vanilla AT can be shown",
    )
    return (
        f"On MNIST ({label(name)}, {seeds} seeds) {finding}: AT / CAT is {interval(ratio, low, high)} over all thresholds, "
        f"where the paper prints {printed.min():.2f} to {printed.max():.2f}{end_clause(tables[name])}{strong_clause(tables)}."
    )


def end_clause(records: pd.DataFrame) -> str:
    """What is left of it at the last iteration."""
    last = ends(records)
    if "final_robust_accuracy" not in last:
        return ""
    gap = difference(
        last.loc["CAT", "final_robust_accuracy"], last.loc["AT", "final_robust_accuracy"]
    )
    return f", and at the end CAT's robust accuracy differs by {points(gap)} points"


def strong_clause(tables: Tables) -> str:
    """The same ratio where epsilon is large, as it may favour the other side."""
    if not (name := next((name for name in STRONG if name in tables), None)):
        return ""
    ratio, low, high, seeds = overall(
        tables[name],
        levels_of(name, "robust_accuracy"),
        "robust_accuracy",
        "iteration",
        "AT",
        "CAT",
    )
    return (
        f"; with {label(name).split(', ')[1]} the ratio is {interval(ratio, low, high)} ({faster(low, high, seeds)})"
        f"{end_clause(tables[name])}"
    )


def parts_sentence(tables: Tables) -> str:
    if not (name := next((name for name in CONTROLS if name in tables), None)):
        return ""
    last = ends(tables[name]).robust_accuracy
    balance, weights = (
        difference(last["balance only"], last["AT"]),
        difference(last["CAT"], last["balance only"]),
    )
    return (
        f"Where training images are met again ({label(name)}), class balance alone changes the robust accuracy at the end by "
        f"{points(balance)} points, and the weights on top of it by {points(weights)}."
    )


def three_times_sentence(tables: Tables) -> str:
    if CIFAR[0] in tables:
        ours, finding = up_to_three(tables[CIFAR[0]], CIFAR[0])
        return f"The claim of 3 times on CIFAR-10: {finding} ({ours})."
    rival = ""
    if (name := CHEAP[1]) in tables:
        ratio = overall(
            tables[name],
            levels_of(name, "robust_accuracy"),
            "robust_accuracy",
            "passes",
            "CAT",
            "N-FGSM",
        )[:3]
        rival = (
            f"; on MNIST, N-FGSM with uniform draws takes {interval(*ratio, digits=1)} times fewer passes than CAT to "
            f"the same thresholds"
        )
    if (name := AUDIT[1]) in tables:
        rows = audit(tables[name], name)
        top = rows[rows.level == rows.level.max()]
        names = list(top.arm[top["reached on test"]])
        rival += (
            f"; and of {len(top)} readings of the paper tried on MNIST, {len(names)} reach its {top.level.max()} % robust accuracy "
            f"within its iterations{': ' if names else ''}{'; '.join(names)}"
        )
    return f"The claim of 3 times, one cell on CIFAR-10 with ResNet-18, is open until a GPU has run the study{rival}."


def markdown(rows: list[tuple], columns: list[str]) -> str:
    lines = [
        columns,
        ["---"] * len(columns),
        *([str(value).replace("|", "\\|") for value in row] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


HOW_TO_READ = """\
- A ratio is AT / CAT, geometric mean over seeds, with its 95 % bootstrap interval; AT and CAT are paired by seed (same initial
  weights). Above 1, CAT is faster. An interval that contains 1 shows no difference; it does not show that there is none.
  All of five seeds fall on one side by luck alone in 6 % of cases, and there are many rows: one row proves little.
- A level counts as reached at the first sustained crossing: that evaluation and its mean with the next are at or above it. The
  tick, the iterations between evaluations, stands in each table's header and bounds the precision. A ratio is over the seeds on
  which both reached the level; "4/5 seeds" says that one did not, and then the ratio flatters whoever missed it.
- ± is the standard deviation over seeds. Seconds are training alone, on a machine with other work: believe iterations and passes.
- Every table says where it is from: dataset, model, threat model, device, versions, seeds, command.
"""


def claims_page(tables: Tables) -> str:
    """data/results/README.md."""
    rows = [
        (number, claim.text, claim.paper, *answer(claim, tables))
        for number, claim in enumerate(claims(), 1)
    ]
    parts = [
        "# What the paper claims, and what was measured\n",
        "<!-- written by `python -m catlib.lab pages` from the tables in this folder; do not edit -->\n",
        verdict(tables) + "\n",
        HOW_TO_READ,
        "## Claim by claim\n",
        markdown(rows, ["", "claim", "paper", "ours", "verdict"]),
    ]
    for title, names, make in (
        ("The controls", CONTROLS, controls),
        ("The cheap rivals", CHEAP, cheap_rivals),
        ("The audit", (*AUDIT, "paper_cifar10_audit"), audit_rows),
    ):
        there = [name for name in names if name in tables]
        parts += [f"## {title}\n"] * bool(there)
        parts += [
            f"{label(name)}; the table `{name}.csv`. {make(tables[name], name)}" for name in there
        ]
    return "\n".join([*parts, "## Open\n", open_pieces(tables)])


def controls(records: pd.DataFrame, name: str) -> str:
    """What is left of CAT when a part is taken away or turned round."""
    # the highest level that AT reached on every seed
    level = max(
        (
            level
            for level in levels_of(name, "robust_accuracy")
            if costs(records[records.arm == "AT"], level / 100, by="arm").iteration.notna().all()
        ),
        default=None,
    )
    last, rows = ends(records), []
    for arm in dict.fromkeys(records.arm):
        mine, row = last.loc[arm], ("", "")
        if arm != "AT":
            speed = speed_at(records, [level], arm=arm).iloc[0] if level else None
            row = (
                points(difference(mine.robust_accuracy, last.loc["AT"].robust_accuracy)),
                interval(speed.ratio, speed.low, speed.high) if level else "",
            )
        rows.append((arm, len(mine), percent(mine.robust_accuracy), *row, percent(mine.coverage)))
    return "\n\n" + markdown(
        rows,
        [
            "arm",
            "seeds",
            "robust accuracy at the end",
            "difference to AT, points",
            f"AT / arm, iterations to {level} %",
            "training images seen",
        ],
    )


def cheap_rivals(records: pd.DataFrame, name: str) -> str:
    last, levels, rows = ends(records), levels_of(name, "robust_accuracy"), []
    metric = "final_robust_accuracy" if "final_robust_accuracy" in last else "robust_accuracy"
    for arm in dict.fromkeys(records.arm):
        ratio = (
            ""
            if arm == "AT"
            else interval(*overall(records, levels, "robust_accuracy", "passes", "AT", arm)[:3])
        )
        rows.append(
            (
                arm,
                len(last.loc[arm]),
                f"{last.loc[arm].passes.mean():,.0f}",
                percent(last.loc[arm][metric]),
                ratio,
            )
        )
    columns = [
        "arm",
        "seeds",
        "passes in all",
        "robust accuracy at the end",
        "AT / arm, passes, all levels",
    ]
    return "\n\n" + markdown(rows, columns)


def audit_rows(records: pd.DataFrame, name: str) -> str:
    rows = audit(records, name)
    fields = {
        (row["arm"], row["level"]): "; ".join(
            f"{'yes' if row[f'reached {where}'] else 'no'} ({100 * row[column]:.0f} %)"
            for where, column in (("on test", "test"), ("in training", "training"))
        )
        for _, row in rows.iterrows()
    }
    levels = list(dict.fromkeys(rows.level))
    return (
        "Is a printed robust accuracy reached within the printed iterations, on test images; and on training batches? In "
        "brackets the best so far, mean over seeds.\n\n"
        + markdown(
            [(arm, *(fields[arm, level] for level in levels)) for arm in dict.fromkeys(rows.arm)],
            ["reading", *(f"{level} %" for level in levels)],
        )
    )


def open_pieces(tables: Tables) -> str:
    """The commands that fill what is missing, whole tables or the rest of their seeds."""
    lines = []
    for piece in pieces_of("paper") + pieces_of("cpu"):
        table = tables.get(piece.table)
        keys = ["arm", "seed", *piece.options.get("grid", {})]
        whole = table is not None and (
            piece.kind != "train" or len(table.groupby(keys)) == len(piece.trials)
        )
        if piece.kind != "notebook" and not whole:
            lines.append(f"- `{piece.table}`. {piece.about}: `{piece.command}`\n")
    return "".join(lines) or "Nothing.\n"


def readme_results(tables: Tables) -> str:
    """Tables 1 and 2 for the project's README."""
    if not (name := next((name for name in MNIST if name in tables), None)):
        return "No table of the study is there yet: `make study PROFILE=cpu`.\n"
    rows = []
    for claim in table_claims():
        best = next((table for table in claim.tables if table in tables), None)
        ours = (
            claim.measure(tables[best], best)
            if best
            else ("—", "open: `make study PROFILE=paper`, on a GPU")
        )
        rows.append((claim.text, claim.paper, *ours))
    end = at_the_end("AT", "CAT", "CAT better", "CAT worse")(tables[name], name)
    rows.append(("Competitive defence effect (abstract)", "no number", *end))
    return (
        f"Ours: {label(name)}, iterations of 128 adversarial examples; a ratio is AT / CAT with its 95 % interval, paired by "
        f"seed. [Every claim of the paper](data/results/README.md).\n\n"
        + markdown(rows, ["", "paper", "ours", "verdict"])
        + "".join(strong_attack(tables[name], name) for name in STRONG if name in tables)
    )


def strong_attack(records: pd.DataFrame, name: str) -> str:
    """The iterations to every level and the robust accuracy in the end, where epsilon is large."""
    rows = []
    for metric, text in METRICS.items():
        speed = speed_at(records, levels_of(name, metric), metric)
        rows += [
            (f"{row['level %']} % {text}", row["AT"], row["CAT"], row["AT/CAT"])
            for row in readable(speed).reset_index().to_dict("records")
        ]
    last = ends(records).final_robust_accuracy
    rows.append(
        (
            "robust accuracy at the end, PGD-20 with restarts",
            percent(last["AT"]),
            percent(last["CAT"]),
            "",
        )
    )
    return f"\nThe same with {label(name)}:\n\n" + markdown(
        rows, ["iterations to", "AT", "CAT", "AT / CAT"]
    )


def between(text: str, marker: str, content: str) -> str:
    """The text with what stands between ``<!-- marker -->`` and ``<!-- /marker -->`` replaced."""
    pattern = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)", re.S)
    return pattern.sub(lambda match: match[1] + content.rstrip("\n") + "\n" + match[2], text)


def pages(results: Path, readme: str) -> dict[str, str]:
    """Every generated text by file name: summary.csv, final.csv, README.md of the results, and the project's README."""
    tables = load_tables(results)
    csv = {
        "summary.csv": (
            summary(tables),
            "Ratios baseline / arm of what a level cost, paired by seed, with 95 % intervals",
        ),
        "final.csv": (
            final(tables),
            "Where each arm stood at the last iteration, and its difference to its baseline",
        ),
    }
    texts = {
        name: f"# {about}\n# command: python -m catlib.lab pages\n"
        + table.to_csv(index=False, lineterminator="\n")
        for name, (table, about) in csv.items()
    }
    readme = between(between(readme, "verdict", verdict(tables)), "results", readme_results(tables))
    return texts | {"README.md": claims_page(tables), "../../README.md": readme}


def write_pages(results: Path) -> None:
    for name, text in pages(results, README.read_text(encoding="utf-8")).items():
        path = README if name.startswith("..") else results / name
        write_whole(path, text.encode())
        print(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)
    if (race := measured("cpu_mnist_tables", results)) is not None and results == RESULTS:
        use_style()
        axes = curves(race[race.method.isin(COLOURS)])
        axes[0].figure.savefig(ROOT / "docs" / "mnist_race.png", dpi=110)
