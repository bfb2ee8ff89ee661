"""The tables of the study: records of finished runs as CSV, below lines on their origin."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from ...files import write_whole
from ..runs import Trial, is_done, settings_beside
from .plan import Piece, budget_of, searched_settings
from .ranges import SEARCH_SEED

DIGITS = {
    "seconds": 2,
    "loss": 4,
    "coverage": 4,
    "accuracy": 4,
    "robust_accuracy": 4,
    "batch_accuracy": 4,
    "drawn_accuracy": 4,
    "met_again": 4,
    "checked": 4,
}


@dataclass(frozen=True)
class Finished:
    """A run that is done: its arm, its trial, its folder, and what its run.json says."""

    arm: str
    trial: Trial
    folder: Path
    info: dict

    @property
    def label(self) -> str:
        return f"{self.arm}, seed {self.trial.seed}"


def finished_in(folder: Path, arm: str, trial: Trial) -> Finished:
    """The finished run in a folder."""
    info = json.loads((folder / "run.json").read_text())
    return Finished(arm, trial, folder, info)


def finished_runs(piece: Piece, runs: Path) -> list[Finished]:
    """The runs of a piece that are done, in the order of its trials."""
    return [
        finished_in(runs / trial.id, arm, trial)
        for arm, trial in piece.trials
        if is_done(runs / trial.id)
    ]


def write_table(piece: Piece, runs: Path, results: Path) -> None:
    """Write the table of a piece of kind "train" from its finished runs, if any has records."""
    finished = finished_runs(piece, runs)
    table = rows_of(piece, finished)
    if table.empty:
        return
    diverged = [one.label for one in finished if "diverged" in one.info]
    notes = {"diverged": "; ".join(diverged)} if diverged else {}
    write_result(piece, table, finished, results, notes)


def write_search(piece: Piece, runs: Path, results: Path) -> None:
    """Write the table of a piece of kind "search": a row an arm and draw.

    Columns: arm, draw; the drawn settings, empty where one does not apply to the arm; accuracy and
    robust_accuracy on the held-out training images at the end, empty where the run diverged;
    passes, seconds; collapses, empty where no guard watched.
    """
    finished = finished_runs(piece, runs)
    if not finished:
        return
    rows = []
    for one in finished:
        row = {"arm": one.arm, "draw": one.trial.seed}
        row |= dict.fromkeys(piece.options["ranges"])  # the columns, in their order
        row |= searched_settings(piece, one.trial)
        rows.append(row | end_of(one))
    notes = {
        "search": "settings are points of scipy's scrambled Sobol sequence of seed "
        f"{SEARCH_SEED}, the same for every arm"
    }
    write_result(piece, pd.DataFrame(rows), finished, results, notes)


def write_frontier(piece: Piece, runs: Path, results: Path) -> None:
    """Write the table of a piece of kind "frontier": a row an arm, budget and seed.

    Columns: arm, seed, budget (passes that were planned); what :func:`end_of` has, on the way's
    images; final_accuracy and final_robust_accuracy, of the judgement at the end.
    """
    finished = finished_runs(piece, runs)
    if not finished:
        return
    rows = []
    for one in finished:
        row = {"arm": one.arm, "seed": one.trial.seed, "budget": budget_of(piece, one.trial)}
        final = {f"final_{name}": round(value, 4) for name, value in one.info["final"].items()}
        rows.append(row | end_of(one) | final)
    write_result(piece, pd.DataFrame(rows), finished, results)


END = ("iteration", "accuracy", "robust_accuracy", "passes", "seconds", "collapses")


def end_of(one: Finished) -> dict[str, Any]:
    """The last row of a run's records; without accuracies where it diverged on the way."""
    records = pd.read_csv(one.folder / "records.csv").round(DIGITS)
    if records.empty:
        return dict.fromkeys(END)
    last = records.iloc[-1].to_dict()
    row = {name: last.get(name) for name in END}
    for name in ("iteration", "passes", "collapses"):
        if row[name] is not None:
            row[name] = int(row[name])
    if "diverged" in one.info:
        row |= {"accuracy": None, "robust_accuracy": None}
    return row


def rows_of(piece: Piece, finished: list[Finished]) -> pd.DataFrame:
    """One row an evaluation: arm, seed, settings in which the trials differ, what was measured.

    A setting with the name of something measured, such as loss, is called setting_loss. What was
    measured at the end of a run stands on its last row.
    """
    varying = varying_settings(piece)
    tables = []
    for one in finished:
        records = pd.read_csv(one.folder / "records.csv").round(DIGITS).drop(columns="examples")
        if records.empty:
            continue
        for name, value in one.info["final"].items():
            records[f"final_{name}"] = [None] * (len(records) - 1) + [round(value, 4)]
        names = {"arm": one.arm, "seed": one.trial.seed}
        names |= settings_beside(records, {name: getattr(one.trial, name) for name in varying})
        tables.append(pd.DataFrame(names, index=records.index).join(records))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def varying_settings(piece: Piece) -> list[str]:
    """The settings in which the trials of a piece differ, the seed aside."""
    names = [field.name for field in fields(Trial) if field.name != "seed"]
    return [name for name in names if len({getattr(trial, name) for _, trial in piece.trials}) > 1]


def write_result(
    piece: Piece,
    table: pd.DataFrame,
    finished: list[Finished],
    results: Path,
    notes: dict | None = None,
) -> None:
    """Write the table below its header.

    A table of some of a piece's runs never replaces one that has others of them.
    """
    path = results / f"{piece.table}.csv"
    complete = len(finished) == len(piece.trials)
    if not complete and _would_be_lost(piece, path, table):
        if path not in _told:  # said once, not after every run
            _told.add(path)
            print(
                f"{path.name} stays as it is, of {runs_in(path)} runs, until this study has all "
                "of these",
                flush=True,
            )
        return
    results.mkdir(parents=True, exist_ok=True)
    lines = header(piece, finished) | (notes or {})
    head = [piece.about, *(f"{key}: {value}" for key, value in lines.items())]
    text = "".join(f"# {line}\n" for line in head)
    text += table.to_csv(index=False, lineterminator="\n")
    write_whole(path, text.encode())


_told: set[Path] = set()  # tables of which this process has said that they stay


def _would_be_lost(piece: Piece, path: Path, table: pd.DataFrame) -> bool:
    """Whether the table that was written before has a run that the new one has not."""
    if not path.exists():
        return False
    if table.empty:
        return True
    before = pd.read_csv(path, comment="#")
    now = pd.read_csv(StringIO(table.to_csv(index=False)))  # so that both were read alike
    names = ["arm", "seed", "draw", "budget"]
    for name in varying_settings(piece):
        names.append(f"setting_{name}" if f"setting_{name}" in before else name)
    names = [name for name in names if name in {*before, *now}]
    if not set(names) <= {*before} & {*now}:
        return len(before) > len(now)
    return bool(_runs_of(before[names]) - _runs_of(now[names]))


def _runs_of(table: pd.DataFrame) -> set[tuple]:
    """The runs of a table of what tells them apart; a setting that is None equals itself."""
    return set(table.astype(object).fillna("").itertuples(index=False, name=None))


def runs_in(path: Path) -> int:
    """How many runs a table that was written before holds; 0 if there is none."""
    if not path.exists():
        return 0
    found = re.search(r"^# runs: (\d+) of", path.read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) if found else 0


def header(piece: Piece, finished: list[Finished]) -> dict[str, str]:
    """What one must know to believe the table: the settings of its runs, then their origin."""
    trials = [one.trial for one in finished]
    infos = [one.info for one in finished]
    lines = training_lines(trials)
    if piece.kind in ("train", "search", "frontier"):
        lines |= evaluation_lines(trials)
    lines["seeds"] = " ".join(sorted({str(trial.seed) for trial in trials}, key=int))
    lines["runs"] = f"{len(finished)} of {len(piece.trials)}"
    threads = in_one_line(info["threads"] for info in infos)
    lines["device"] = f"{in_one_line(info['device'] for info in infos)}, {threads} threads"
    lines["versions"] = in_one_line(version_line(info) for info in infos)
    lines["code"] = in_one_line(info["revision"] for info in infos)
    lines["command"] = piece.command
    return lines


def training_lines(trials: list[Trial]) -> dict[str, str]:
    """Data, model, threat model, attack and update, each value once."""

    def of(name: str) -> str:
        return values_of(trials, name)

    dataset = of("dataset")
    if of("train_size") != "None":
        dataset += f", first {of('train_size')} training images"
    if of("validation_size") != "0":
        dataset += f", of which {of('validation_size')} are held out"
    step_size = of("step_size").replace("None", "2.5 epsilon / steps")
    return {
        "dataset": dataset,
        "model": _model_of(trials),
        "threat model": f"{of('norm')}, epsilon {of('epsilon')}, images in [0, 1]",
        "training attack": (
            f"{of('crafting')}, {of('steps')} steps of {step_size}, "
            f"{of('restarts')} restarts, rule {of('rule')}"
        ),
        "update": (
            f"{_loss_of(trials)}{of('optimizer')}, "
            f"learning rate {of('learning_rate')}, schedule {of('schedule')}, "
            f"weight decay {of('weight_decay')}, batch {of('sampling_number')}, "
            f"augmentation {of('augment')}, "
            f"epsilon grows over {of('epsilon_warm_up')} iterations"
        ),
    }


def _model_of(trials: list[Trial]) -> str:
    """The models, with the width of a ResNet that is not the published one."""
    names = []
    for trial in trials:
        slim = "" if trial.width is None else f", width {trial.width} instead of 64"
        names.append(f"{trial.model}{slim}")
    return in_one_line(names)


def _loss_of(trials: list[Trial]) -> str:
    """The losses, with beta where one uses it; empty if all are the usual one."""
    if all(trial.loss == "cross-entropy" for trial in trials):
        return ""
    return f"loss {values_of(trials, 'loss')} (beta {values_of(trials, 'beta')}), "


def evaluation_lines(trials: list[Trial]) -> dict[str, str]:
    """On what the runs were evaluated, how often, by which attack."""

    def of(name: str) -> str:
        return values_of(trials, name)

    lines = {
        "evaluation": (
            f"{_subset_of(trials, 'evaluation_size')} {_images_of(trials)}, "
            f"PGD-{of('evaluation_steps')}, one random start, rule {of('evaluation_rule')}; "
            f"tick: {_tick_of(trials)}; "
            f"batch_accuracy is on the training batch, before its update"
            f"{_recalibration_of(trials)}"
        )
    }
    if any(trial.final_restarts for trial in trials):
        images = _subset_of(trials, "final_size")
        lines["final"] = (
            f"PGD-{of('evaluation_steps')} with {of('final_restarts')} restarts "
            f"on {images} test images"
        )
    if any(trial.audit_epsilon is not None for trial in trials):
        lines["audit"] = (
            f"final_full_strength is by signed PGD-20 at epsilon {of('audit_epsilon')}, "
            "final_moved the mean change of a pixel by the evaluation's attack, in its epsilons"
        )
    return lines


def _subset_of(trials: list[Trial], name: str) -> str:
    """Which test images, as "first 200", "200 spread over all" or "all"."""
    words = []
    for trial in trials:
        count = getattr(trial, name)
        if count is None:
            words.append("all")
        elif trial.evaluation_subset == "first":
            words.append(f"first {count}")
        else:
            words.append(f"{count} spread over all")
    return in_one_line(words)


def _images_of(trials: list[Trial]) -> str:
    """On what images the evaluations on the way are."""
    kinds = []
    for trial in trials:
        held = f"of {trial.validation_size} held-out training images"
        kinds.append(held if trial.validation_size else "test images")
    return in_one_line(kinds)


def _tick_of(trials: list[Trial]) -> str:
    tick = f"every {values_of(trials, 'evaluate_every')} iterations"
    if any(trial.evaluate_first for trial in trials):
        tick = f"every iteration up to {values_of(trials, 'evaluate_first')}, then {tick}"
    return tick


def _recalibration_of(trials: list[Trial]) -> str:
    if not any(trial.recalibrate for trial in trials):
        return ""
    images = values_of(trials, "recalibrate")
    return f"; batch norm's statistics are of {images} clean training images"


def values_of(trials: list[Trial], name: str) -> str:
    """The values of a setting, each once."""
    values = dict.fromkeys(getattr(trial, name) for trial in trials)
    return " | ".join(
        f"{value:.4g}" if isinstance(value, float) else str(value) for value in values
    )


def version_line(info: dict) -> str:
    return ", ".join(f"{name} {version}" for name, version in info["versions"].items())


def in_one_line(values: Iterable[Any]) -> str:
    """Different values in the order in which they first come."""
    return " | ".join(dict.fromkeys(str(value) for value in values))
