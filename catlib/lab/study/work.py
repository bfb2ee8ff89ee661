"""The work of the study: the units of its pieces, run by one engine, and what is written of them.

A unit that is done is never repeated, so a study that was paused or killed goes on with those that
are not. The units of all pieces are handed out together, in the order of the pieces, so that no
worker waits for the end of a piece.
"""

import importlib.util
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ...files import write_whole
from ..batch.engine import Failure, Result, ThisProcess, Where, run_jobs
from ..batch.notebooks import parameter_names
from ..batch.place import check_choice, place
from ..batch.units import check_datasets, check_folder, shard
from ..judge import autoattack_is_installed, together
from ..paths import NOTEBOOKS, RESULTS, ROOT
from ..runs import IF_CODE_CHANGED, Trial, put_aside
from .cost import Speed, finals_of, seconds_of_runs
from .plan import Piece, budget_of, lacks_choice, pieces_of
from .tables import (
    Finished,
    finished_in,
    finished_runs,
    write_frontier,
    write_result,
    write_search,
    write_table,
)
from .units import (
    PARTS,
    FinalUnit,
    PartsUnit,
    StudyNotebook,
    StudyTrial,
    TrainUnit,
    autoattack_size,
    final_models,
)

StudyUnit = StudyTrial | StudyNotebook

# what a notebook imports, and what executes it and makes a page of it
NOTEBOOK_PACKAGES = (
    "papermill",
    "nbclient",
    "nbformat",
    "nbconvert",
    "ipykernel",
    "ipywidgets",
    "anywidget",
    "matplotlib",
    "plotly",
    "bs4",
    "latex2mathml",
)
INSTALL = "pip install -e '.[notebooks]' brings them; the same command then does the rest."


@dataclass(frozen=True)
class Planned:
    """A piece and its units."""

    piece: Piece
    units: Sequence[StudyUnit]

    def write(self, runs: Path, results: Path) -> None:
        """Write what is there of the piece so far."""
        KINDS[self.piece.kind].write(self, runs, results)


def study(
    profile: str,
    names: Sequence[str] = (),
    *,
    scale: str = "full",
    minutes: float | None = None,
    runs: Path | None = None,
    results: Path | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    part: str | None = None,
    seeds: Collection[int] = (),
    speed: Speed | None = None,
    if_code_changed: str = "refuse",
) -> bool:
    """Run the pieces of a profile, or those named.

    Args:
        minutes: stop, saved, after so long; None goes on to the end.
        runs: folder of the runs; None is ``runs/study/<profile>`` (with ``-tiny`` at that scale).
        results: folder of the tables; None is ``data/results``, for smoke and tiny ``results``
            beside the runs.
        workers: processes, each with one run at a time and one thread; None runs one after another
            in this process, with all its threads, so that nothing disturbs the times in the tables.
        scheduler: address of a Dask scheduler, whose workers run all in place of processes here.
        part: run only this part, such as "2/5", the second of five.
        seeds: only the runs of these seeds, and no notebook; empty is all. The tables hold what is
            finished.
        speed: of this machine's GPU, to say beforehand how long the runs of each piece take.
        if_code_changed: what to do with runs that other code made: "refuse" raises an error,
            "repeat" puts them aside and makes them anew, "reuse" takes them as they are.

    Returns: True when all of it is done, False when the time was up before.

    Raises:
        ValueError: there is no such profile, or it has no piece of one of the names or no run of
            one of the seeds; a piece of
            ``names`` needs packages that are not installed (without ``names`` it is left out, and
            said to be); there are runs of other code, and they are to be refused; or a dataset, a
            folder, the disk or the memory will not do. Nothing was started.
        Failure: some runs failed; all others were done before.
    """
    check_choice(workers, scheduler)
    runs, results = folders(profile, scale, runs, results)
    if minutes is not None and not 0 < minutes < float("inf"):
        raise ValueError(f"minutes is {minutes}; it must be a number above 0, or None: no limit.")
    deadline = float("inf") if minutes is None else time.time() + 60 * minutes
    pieces = pieces_of(profile, scale)
    unknown = set(names) - {piece.name for piece in pieces}
    if unknown:
        raise ValueError(
            f"{profile} has no piece {', '.join(sorted(unknown))}; "
            f"it has: {', '.join(piece.name for piece in pieces)}."
        )
    chosen = possible([piece for piece in pieces if not names or piece.name in names], names)
    planned = [Planned(piece, KINDS[piece.kind].units(piece, runs, deadline)) for piece in chosen]
    units = of_seeds(each_once(planned), seeds)
    if part is not None:
        units = shard(units, part)
    settle_other_code(units, runs, if_code_changed)
    left = [unit for unit in units if not unit.is_done()]
    failed: list[Result] = []
    if left:
        check_datasets(unit.dataset for unit in left)
        check_folder(runs, "--runs")
        check_folder(results, "--results")
        with place_for(len(left), runs, workers, scheduler) as where:
            if speed is not None:
                say_time_left(planned, left, speed, where.count)
            outcomes = work_through(left, planned, where, runs, results)
        if any(result.outcome == "paused" for result in outcomes):
            return False
        failed = [result for result in outcomes if result.failed]
    for one in planned:
        one.write(runs, results)
    if failed:
        files = "".join(f"\n    {result.job.error_file}" for result in failed)
        raise Failure(f"{len(failed)} runs failed; why, is said in{files}")
    return True


def possible(pieces: Sequence[Piece], names: Sequence[str]) -> list[Piece]:
    """The pieces whose packages are installed; what the others lack is printed in a sentence.

    Raises: ValueError: one of the others is among ``names``, the pieces that were asked for.
    """
    lacking = {piece.name: lacking_packages(piece) for piece in pieces}
    impossible = {name: packages for name, packages in lacking.items() if packages}
    listed = "; ".join(f"{name} ({', '.join(packages)})" for name, packages in impossible.items())
    if set(names) & set(impossible):
        raise ValueError(f"packages are missing here for {listed}. {INSTALL}")
    if impossible:
        print(f"Left out, as packages are missing here: {listed}. {INSTALL}", flush=True)
    unchosen = {piece.name: why for piece in pieces if (why := why_unchosen(piece))}
    for name, why in unchosen.items():
        if name in names:
            raise ValueError(why)
        print(f"Left out: {why}", flush=True)
    without_autoattack = [piece.name for piece in pieces if piece.kind == "finals"]
    if without_autoattack and not autoattack_is_installed():
        print(
            f"Measured without AutoAttack, as pyautoattack is missing here, and it is not added "
            f"later: {', '.join(without_autoattack)}. To have it, install pyautoattack first.",
            flush=True,
        )
    return [piece for piece in pieces if piece.name not in impossible | unchosen]


def why_unchosen(piece: Piece) -> str:
    """Why a piece cannot run before a search; empty where it can, as all can at the scale "tiny".

    A piece that judges the final models of another one waits for the same.
    """
    if piece.kind == "finals":
        piece = long_piece(piece)
    if piece.options.get("tiny") or not lacks_choice(piece):
        return ""
    search = piece.options["chosen"]
    return (
        f"{piece.name} takes its settings from the search {search}, and chosen.toml has none of it "
        f"for all of its arms. First run `catlib study --profile {piece.profile} --piece {search}`,"
        " then `catlib study --choose`."
    )


def lacking_packages(piece: Piece) -> list[str]:
    """The packages that a piece cannot do without and that are not installed."""
    if piece.kind != "notebook":
        return []
    return [name for name in NOTEBOOK_PACKAGES if importlib.util.find_spec(name) is None]


def place_for(most: int, runs: Path, workers: int | None, scheduler: str | None) -> Where:
    """Where so many units run."""
    if workers is None and scheduler is None:
        return ThisProcess()
    return place(most, runs, workers=workers, scheduler=scheduler)


def each_once(planned: Sequence[Planned]) -> list[StudyUnit]:
    """The units of all pieces in their order; a run that pieces share is one unit."""
    units: dict[Path, StudyUnit] = {}
    for one in planned:
        for unit in one.units:
            units.setdefault(unit.record, unit)
    return list(units.values())


def of_seeds(units: Sequence[StudyUnit], seeds: Collection[int]) -> list[StudyUnit]:
    """The units whose trials have one of the seeds; all of them if no seed is given.

    Raises: ValueError: there is no unit of one of the seeds.
    """
    if not seeds:
        return list(units)
    of_trials = [unit for unit in units if isinstance(unit, StudyTrial)]
    there = {unit.trial.seed for unit in of_trials}
    unknown = sorted(set(seeds) - there)
    if unknown:
        raise ValueError(
            f"no run has the seed {', '.join(map(str, unknown))}; "
            f"the pieces have runs of the seeds {', '.join(map(str, sorted(there))) or 'none'}."
        )
    return [unit for unit in of_trials if unit.trial.seed in seeds]


def say_time_left(
    planned: Sequence[Planned], left: Sequence[StudyUnit], speed: Speed, workers: int
) -> None:
    """Print of each piece how many runs are left, and about how long they take."""
    waiting = {unit.record for unit in left}
    for one in planned:
        units = [unit for unit in one.units if unit.record in waiting]
        trials = [unit.trial for unit in units if isinstance(unit, TrainUnit | PartsUnit)]
        waiting -= {unit.record for unit in units}  # a run that pieces share is said once
        if trials:
            judged = next((unit.finals for unit in units if isinstance(unit, TrainUnit)), None)
            minutes = seconds_of_runs(one.piece, trials, speed, judged) / 60 / workers
            print(
                f"{one.piece.table}: {len(trials)} runs left, about {minutes:.1f} min", flush=True
            )


def work_through(
    left: Sequence[StudyUnit],
    planned: Sequence[Planned],
    where: Where,
    runs: Path,
    results: Path,
) -> list[Result]:
    """Run the units as they become ready, and write the tables of a piece after each of its own."""

    def write_tables(result: Result) -> None:
        for one in planned:
            if result.job.error_file in {unit.error_file for unit in one.units}:
                write_or_say(one, runs, results)

    outcomes: list[Result] = []
    while ready := [unit for unit in left if unit.is_ready()]:
        outcomes += run_jobs(ready, where, write_tables)
        if any(result.outcome == "paused" for result in outcomes):
            return outcomes
        names = {unit.name for unit in ready}
        left = [unit for unit in left if unit.name not in names]
    for unit in left:
        print(f"not yet: {unit.name}, which needs a run that is not done", flush=True)
    return outcomes


def write_or_say(one: Planned, runs: Path, results: Path) -> None:
    """Write what is there of a piece; a full disk must not end the runs that still go on."""
    try:
        one.write(runs, results)
    except OSError as error:
        print(f"the table of {one.piece.name} could not be written: {error}", file=sys.stderr)


def settle_other_code(units: Sequence[StudyUnit], runs: Path, if_code_changed: str) -> None:
    """Refuse what other code made, make room for it to be made anew, or leave it, as is asked for.

    It is about runs, finished or begun, and about executed notebooks.

    Raises: ValueError: other code made some of them, and they are to be refused.
    """
    if if_code_changed not in IF_CODE_CHANGED:
        raise ValueError(
            f"if_code_changed is {if_code_changed!r}; "
            f"it must be one of {', '.join(IF_CODE_CHANGED)}."
        )
    if if_code_changed == "reuse":
        return
    made = [unit for unit in units if unit.record.exists()]
    changed = {unit.folder: names for unit in made if (names := unit.changed_code())}
    if changed and if_code_changed == "refuse":
        folder, names = next(iter(changed.items()))
        raise ValueError(
            f"{len(changed)} of {len(made)} runs in {runs} were made by other code, such as "
            f"{folder.name}; what differs: {', '.join(names[:5])}. Say what to do with them: "
            "--if-code-changed repeat (make them anew) or reuse (take them as they are); "
            "or choose another folder with --runs."
        )
    for folder in changed:
        put_aside(folder)


def folders(
    profile: str, scale: str, runs: Path | None = None, results: Path | None = None
) -> tuple[Path, Path]:
    """Where the runs and the tables of a study lie, absolute; None is the usual place."""
    trying = scale == "tiny" or profile == "smoke"
    if runs is None:
        runs = ROOT / "runs" / "study" / (f"{profile}-tiny" if scale == "tiny" else profile)
    if results is None:
        results = Path(runs) / "results" if trying else RESULTS
    return Path(runs).resolve(), Path(results).resolve()


def progress(
    profile: str, scale: str, runs: Path | None = None
) -> Iterator[tuple[Piece, int, int]]:
    """The pieces of a profile, each with how many of its units are done, and of how many.

    A piece whose packages are missing here has none.
    """
    runs, _ = folders(profile, scale, runs)
    for piece in pieces_of(profile, scale):
        units: Sequence[StudyUnit] = []
        if not lacking_packages(piece):
            units = KINDS[piece.kind].units(piece, runs, float("inf"))
        yield piece, sum(unit.is_done() for unit in units), len(units)


# ------------------------------------------------------------------ the kinds of pieces


@dataclass(frozen=True)
class Kind:
    """What a kind of piece consists of.

    Attributes:
        units: of a piece whose runs are in a folder, and which stop at a deadline.
        write: the tables and pages of a piece, from what is done; given the folders of the runs and
            of the results.
    """

    units: Callable[[Piece, Path, float], Sequence[StudyUnit]]
    write: Callable[[Planned, Path, Path], None]


def is_judged(trial: Trial, piece: Piece, finals: dict | None) -> bool:
    """Whether a piece of kind "finals", of these options, judges this trial of a long piece.

    It judges all of them; of a frontier those of the first ``of_seeds`` seeds at ``of_budgets``.
    """
    if finals is None:
        return False
    if trial.seed >= finals.get("of_seeds", trial.seed + 1):
        return False
    return "of_budgets" not in finals or budget_of(piece, trial) in finals["of_budgets"]


def labelled(piece: Piece, trials: Sequence[tuple[str, Trial]]) -> Iterator[tuple[str, Trial]]:
    """Trials, each after what it is called while it runs."""
    for number, (arm, trial) in enumerate(trials, 1):
        yield f"{piece.table} {number}/{len(trials)}  {arm}, seed {trial.seed}", trial


def train_units(piece: Piece, runs: Path, deadline: float) -> list[TrainUnit]:
    keep_best = piece.options.get("keep_best", False)
    finals = None if keep_best else finals_of(piece, all_pieces_beside(piece))
    return [
        TrainUnit(
            trial,
            runs,
            label=label,
            deadline=deadline,
            keep_best=keep_best,
            finals=finals if is_judged(trial, piece, finals) else None,
        )
        for label, trial in labelled(piece, piece.trials)
    ]


def write_training(planned: Planned, runs: Path, results: Path) -> None:
    write_table(planned.piece, runs, results)


def write_searched(planned: Planned, runs: Path, results: Path) -> None:
    write_search(planned.piece, runs, results)


def write_by_budget(planned: Planned, runs: Path, results: Path) -> None:
    write_frontier(planned.piece, runs, results)


def parts_units(piece: Piece, runs: Path, deadline: float) -> list[PartsUnit]:
    return [
        PartsUnit(
            trial, runs, label=label, deadline=deadline, kind=piece.kind, options=piece.options
        )
        for label, trial in labelled(piece, piece.trials)
    ]


def write_parts(planned: Planned, runs: Path, results: Path) -> None:
    """The tables of a piece of kind "similarity" or "draws", from the finished runs."""
    arms = [arm for arm, _ in planned.piece.trials]
    finished = [
        finished_in(unit.folder, arm, unit.trial)
        for arm, unit in zip(arms, planned.units, strict=True)
        if isinstance(unit, PartsUnit) and unit.is_done()
    ]
    if not finished:
        return
    for part in PARTS[planned.piece.kind]:
        tables = [
            read_part(one.folder / f"{part.name}.csv").assign(arm=one.arm).round(4)
            for one in finished
        ]
        named = replace(planned.piece, name=planned.piece.name + part.suffix)
        write_result(named, pd.concat(tables, ignore_index=True), finished, results)


def read_part(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except pd.errors.EmptyDataError:  # no group of examples was large enough
        return pd.DataFrame()


def notebook_units(piece: Piece, runs: Path, deadline: float) -> list[StudyNotebook]:
    """The notebook of a piece, with those of the piece's parameters that it has."""
    notebook = NOTEBOOKS / f"{piece.options['notebook']}.ipynb"
    given = piece.options["tiny_parameters" if piece.options["tiny"] else "parameters"]
    names = parameter_names(notebook)
    values = {name: value for name, value in given.items() if name in names}
    return [StudyNotebook(notebook, values, runs, label=piece.table, deadline=deadline)]


def write_notebook(planned: Planned, runs: Path, results: Path) -> None:
    """The executed notebook and its page, beside the results."""
    for unit in planned.units:
        if isinstance(unit, StudyNotebook) and unit.is_done():
            copy = results / "notebooks" / unit.output.name
            page = copy.with_suffix(".html")
            executed = unit.output.read_bytes()
            if page.exists() and copy.exists() and copy.read_bytes() == executed:
                continue
            from ..site import write_site  # with nbconvert, which takes seconds to import

            copy.parent.mkdir(parents=True, exist_ok=True)
            write_whole(copy, executed)
            write_site([copy], copy.parent)
            print(f"{planned.piece.table}: {copy.name}, {page.name}", flush=True)


def final_units(piece: Piece, runs: Path, deadline: float) -> Sequence[FinalUnit | TrainUnit]:
    """The final models of each long run; or the runs, where these are judged at their end."""
    long = long_piece(piece)
    if not long.options.get("keep_best", False):
        units = train_units(long, runs, deadline)
        return [unit for unit in units if unit.finals is not None]
    return [
        FinalUnit(
            trial,
            runs,
            label=f"{label}, {model} model",
            deadline=deadline,
            model=model,
            options=piece.options,
        )
        for label, trial in labelled(piece, long.trials)
        for model in final_models(piece.options)
    ]


def long_piece(piece: Piece) -> Piece:
    """The piece whose final models a piece of kind "finals" judges."""
    others = all_pieces_beside(piece)
    return next(other for other in others if other.name == piece.options["of"])


def all_pieces_beside(piece: Piece) -> list[Piece]:
    """The pieces of the same profile at the same scale."""
    return pieces_of(piece.profile, "tiny" if piece.options.get("tiny") else "full")


def write_finals(planned: Planned, runs: Path, results: Path) -> None:
    """A row for each final model, of the runs that did not diverge and of which all are judged."""
    piece = planned.piece
    long = long_piece(piece)
    finished = []
    rows = []
    for one in finished_runs(long, runs):
        if not is_judged(one.trial, long, piece.options):
            continue
        units = [
            FinalUnit(one.trial, runs, model=model, options=piece.options)
            for model in final_models(piece.options)
        ]
        if "diverged" not in one.info and all(unit.is_done() for unit in units):
            finished.append(one)
            rows += [final_row(long, one, unit) for unit in units]
    if rows:
        judged = tuple(
            (arm, trial) for arm, trial in long.trials if is_judged(trial, long, piece.options)
        )
        write_result(replace(piece, trials=judged), pd.DataFrame(rows), finished, results)


def final_row(long: Piece, one: Finished, unit: FinalUnit) -> dict:
    found = unit.found()
    records = pd.read_csv(one.folder / "records.csv").set_index("iteration")
    row: dict[str, Any] = {"arm": one.arm, "seed": one.trial.seed}
    if long.kind == "frontier":
        row["budget"] = budget_of(long, one.trial)
    row |= {
        "model": unit.model,
        "iteration": found["iteration"],
        "coverage": round(records.coverage[found["iteration"]], 4),
    }
    autoattack = found.get("autoattack", autoattack_size(unit.options))
    values = together(found["measured"], autoattack)
    return row | {name: round(value, 4) for name, value in values.items()}


KINDS = {
    "train": Kind(train_units, write_training),
    "search": Kind(train_units, write_searched),
    "frontier": Kind(train_units, write_by_budget),
    "similarity": Kind(parts_units, write_parts),
    "draws": Kind(parts_units, write_parts),
    "notebook": Kind(notebook_units, write_notebook),
    "finals": Kind(final_units, write_finals),
}
