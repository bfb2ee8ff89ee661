"""The race of AT and CAT that lesson 06 runs: settings that suit the data, and what came out.

settings = settings_for("mnist", epsilon=0.3)
tables = speed_tables(records, levels_for("mnist"))
print(who_was_ahead(tables))
"""

from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from catlib import load_data

from . import compare, figures
from .claims import levels_of, sooner
from .compare import COSTS, METRICS
from .pages import epsilon_of, network
from .paper import NAMES, PAPER
from .runs import Trial
from .study import Piece
from .summaries import all_pieces

# What suits each dataset. On the MNIST sets epsilon grows from 0 at first: at full strength from
# the start, some runs hardly learn.
SETTINGS = {
    "digits": {
        "sampling_number": 64,
        "epsilon": 0.15,
        "learning_rate": 0.02,
        "iterations": 120,
        "evaluate_every": 4,
        "evaluation_size": 200,
        "epsilon_warm_up": 0,
    },
    "mnist": {
        "sampling_number": 128,
        "epsilon": 0.1,
        "learning_rate": 0.02,
        "iterations": 200,
        "evaluate_every": 5,
        "evaluation_size": 500,
        "epsilon_warm_up": 40,
    },
    "fashion_mnist": {
        "sampling_number": 128,
        "epsilon": 0.1,
        "learning_rate": 0.02,
        "iterations": 300,
        "evaluate_every": 10,
        "evaluation_size": 500,
        "epsilon_warm_up": 40,
    },
    "cifar10": {
        "sampling_number": 128,
        "epsilon": 8 / 255,
        "learning_rate": 0.05,
        "iterations": 3000,
        "evaluate_every": 10,
        "evaluation_size": 500,
        "epsilon_warm_up": 0,
    },
}
# of data of one's own, as a beginning; the names above were tried, this cannot be
OWN_DATA = {
    "sampling_number": 64,
    "epsilon": 8 / 255,
    "learning_rate": 0.02,
    "iterations": 200,
    "evaluate_every": 10,
    "evaluation_size": 200,
    "epsilon_warm_up": 50,
}
STRONG_MNIST = {"iterations": 800, "evaluate_every": 10, "epsilon_warm_up": 300}

# the accuracies, in percent, whose cost the tables ask for
LEVELS: dict[str, dict[str, list[float]]] = {
    "digits": {
        "accuracy": [50, 60, 70, 80, 90],
        "robust_accuracy": [10, 20, 30, 40, 50],
    },
    "mnist": {
        "accuracy": [80, 85, 90, 95],
        "robust_accuracy": [50, 60, 70, 80, 90],
    },
    "fashion_mnist": {
        "accuracy": [60, 65, 70, 75],
        "robust_accuracy": [40, 50, 55, 60],
    },
    "cifar10": {
        "accuracy": [50, 60, 65, 70, 75, 80],
        "robust_accuracy": [25, 30, 35, 40, 45, 50, 55, 60],
    },
}

Tables = dict[tuple[str, str], pd.DataFrame]  # by metric and cost


def settings_for(dataset: str, **given) -> dict:
    """The settings of a race on this dataset, as keyword arguments of :class:`Trial`.

    Args:
        dataset: a name or a path, as for :func:`load_data`.
        given: settings that replace those of :data:`SETTINGS`, or :data:`OWN_DATA` for data of
            one's own; None leaves what suits the data.

    Raises: ValueError: there is no such dataset.
    """
    settings: dict = dict(SETTINGS.get(dataset, OWN_DATA))
    if dataset not in SETTINGS:
        images = len(load_data(dataset).y_train)
        settings["sampling_number"] = min(settings["sampling_number"], images)
    if dataset == "mnist" and (given.get("epsilon") or 0) > 0.2:  # a strong attack starts slowly
        settings |= STRONG_MNIST
    settings |= {name: value for name, value in given.items() if value is not None}
    return settings


def levels_for(dataset: str) -> dict[str, list[float]]:
    """The accuracies, in percent, whose cost the tables of a race ask for, by metric.

    For data of one's own they are all the tens above chance.

    Raises: ValueError: there is no such dataset.
    """
    if dataset in LEVELS:
        return LEVELS[dataset]
    chance = 100 / len(load_data(dataset).classes)
    above: list[float] = [level for level in range(10, 100, 10) if level > chance]
    return {"accuracy": above, "robust_accuracy": above}


def pair(seed: int, **settings) -> list[Trial]:
    """AT and CAT of one seed: two trials that differ in the method alone."""
    return [Trial(method=method, seed=seed, **settings) for method in ("AT", "CAT")]


# ------------------------------------------------------------------ what came out


def speed_tables(records: pd.DataFrame, levels: dict[str, list[float]]) -> Tables:
    """What AT and CAT took to each level: a :func:`compare.speed_table` by metric and cost.

    Args:
        records: of AT and CAT, with the column ``arm``.
        levels: in percent, by metric.
    """
    tables = {}
    for metric, wanted in levels.items():
        for cost in COSTS:
            shares = [level / 100 for level in wanted]
            tables[metric, cost] = compare.speed_table(records, shares, metric, cost)
    return tables


def who_was_ahead(tables: Tables) -> str:
    """A markdown list: who was ahead, by metric, counted in iterations and in seconds.

    Passes are left out: they give the same ratios as iterations.
    """
    lines = []
    for (metric, cost), table in tables.items():
        if cost == "passes":
            continue
        sentences = compare.who_was_ahead(table)
        lines.append(f"- **{METRICS[metric].capitalize()}, by {COSTS[cost]}.** {sentences}")
    return "\n".join(lines)


def side_by_side(tables: Tables, dataset: str) -> pd.DataFrame:
    """All speed tables in one for reading, with the paper's ratio where it prints the level."""
    parts = []
    for metric in dict.fromkeys(metric for metric, _ in tables):
        shown = {cost: compare.readable(tables[metric, cost]) for cost in COSTS}
        named = [table.add_prefix(f"{cost} ") for cost, table in shown.items()]
        both = pd.concat(named, axis=1).drop(columns="passes AT/CAT")  # that of the iterations
        printed = PAPER.get(dataset, {}).get(metric, {})
        if printed:
            levels = tables[metric, "iteration"].level
            both["paper AT/CAT"] = [_printed_ratio(printed, level) for level in levels]
        both.insert(0, "metric", METRICS[metric])
        parts.append(both.reset_index())
    return pd.concat(parts, ignore_index=True)


def _printed_ratio(printed: dict, level: float) -> str:
    """AT / CAT of the paper at a level, or a dash where it prints none."""
    if level not in printed:
        return "—"
    at, cat = printed[level]
    return f"{at / cat:.2f}"


def save(
    folder: str | Path, records: pd.DataFrame, summary: pd.DataFrame, figure: Figure, trial: Trial
) -> None:
    """Leave records.csv, table.csv (below the settings of the trials) and figure.png in a folder.

    Args:
        trial: any of the race; the others have its settings, with another method or seed.
    """
    folder = Path(folder)
    head = f"# {asdict(trial)}\n# seeds {sorted(set(records.seed))}\n"
    (folder / "table.csv").write_text(head + summary.to_csv(index=False), encoding="utf-8")
    records.to_csv(folder / "records.csv", index=False)
    figure.savefig(folder / "figure.png")


# ------------------------------------------------------------------ the races of the study


def study_races() -> dict[str, Piece]:
    """The pieces of the study that race AT and CAT as Tables 1 and 2 do, by table."""
    pieces = [piece for piece in all_pieces() if piece.profile != "smoke"]
    return {piece.table: piece for piece in pieces if "_tables" in piece.table}


def setting_of(piece: Piece) -> str:
    """Dataset, model and attack of a piece in a few words, as "MNIST, cnn, growing ε = 0.1"."""
    _, trial = piece.trials[0]
    dataset = NAMES.get(trial.dataset, trial.dataset)
    return f"{dataset}, {network(trial)}, {epsilon_of(piece)}"


def study_answer(piece: Piece) -> str:
    """Who was ahead in a race of the study, by how much, and where both ended; or how to run it."""
    records = compare.measured(piece.table)
    if records is None:
        return f"Not measured yet: `{piece.command}`."
    levels = levels_of(piece)
    sentences = [
        "By robust accuracy and iterations:",
        compare.who_was_ahead(compare.speed_table(records, levels)),
    ]
    one = compare.overall(records, levels)
    if one.levels:
        sentences.append(
            f"Over the levels that every run reached AT/CAT is {one.ratio.as_ratio()} "
            f"({compare.faster_overall(one).remark or compare.how_much_faster(one.ratio)})."
        )
    gap = sooner(records, piece, "AT", "CAT").numbers["difference"]
    failed = compare.failures(compare.ends(records), "AT", "CAT")
    sentences.append(
        f"At the end the robust accuracy of CAT differs by {gap.as_points()} points "
        f"({failed or compare.how_much_better(gap)})."
    )
    return " ".join(sentences)


def study_answers() -> str:
    """A markdown list of all races of the study, and in how many of them CAT is shown faster."""
    lines = []
    verdicts = []
    for piece in study_races().values():
        lines.append(f"- **{setting_of(piece)}.** {study_answer(piece)}")
        records = compare.measured(piece.table)
        if records is not None:
            one = compare.overall(records, levels_of(piece))
            verdicts.append(compare.faster_overall(one).word)
    shown = verdicts.count(compare.HOLDS)
    lines.append("")
    lines.append(
        f"Over all levels of robust accuracy that every run reached, CAT is shown to be faster in "
        f"{shown} of {len(verdicts)} measured settings."
    )
    return "\n".join(lines)


def findings() -> str:
    """A markdown list: in each race of the study, whether CAT is shown to be faster, by metric."""
    lines = []
    for piece in study_races().values():
        records = compare.measured(piece.table)
        if records is None:
            lines.append(f"- {setting_of(piece)}: not measured yet.")
            continue
        lines.append(f"- {setting_of(piece)}: that CAT is faster")
        lines += [f"    - {_finding(records, piece, metric)}" for metric in METRICS]
    return "\n".join(lines)


def _finding(records: pd.DataFrame, piece: Piece, metric: str) -> str:
    one = compare.overall(records, levels_of(piece, metric), metric=metric)
    verdict = compare.faster_overall(one)
    ratio = f", AT/CAT {one.ratio.as_ratio()}" if one.levels else ""
    remark = f" ({verdict.remark})" if verdict.remark else ""
    return f"to the same {METRICS[metric]}{ratio}: **{verdict.word}**{remark}."


def study_curves() -> Figure:
    """Robust accuracy of AT and CAT in every measured race of the study, one panel each.

    The title says the setting; below it stands how many runs reached the highest level of the
    table that some run reached.
    """
    measured = {}
    for name, piece in study_races().items():
        records = compare.measured(name)
        if records is not None:
            measured[name] = (piece, records[records.arm.isin(["AT", "CAT"])])
    rows = max(1, -(-len(measured) // 3))
    size = (10, 2.7 * rows)
    figure, axes = plt.subplots(
        rows, 3, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(measured) :]:
        axis.set_visible(False)
    for axis, (piece, records) in zip(axes.flat, measured.values(), strict=False):
        figures.curves(records, metrics=("robust_accuracy",), axes=axis)
        title = f"{setting_of(piece)}\n{highest_arrivals(records, levels_of(piece))}"
        axis.set_title(title, fontsize=8)
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel("robust accuracy")
    return figure


def highest_arrivals(records: pd.DataFrame, levels: list[float]) -> str:
    """At the highest level that some run reached: how many of each arm did, as "80 %: AT 1/5"."""
    table = compare.speed_table(records, levels)
    some = table[~(table.AT.isna() & table.CAT.isna())]
    if some.empty:
        return f"no run reached {100 * min(levels):g} %"
    row = some.loc[some.level.idxmax()]
    arrivals = f"AT {row['AT reached']}, CAT {row['CAT reached']} runs"
    return f"{row.level:g} % reached by {arrivals}"
