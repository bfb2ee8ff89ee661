"""The work of the study: every kind of piece as jobs that are done once and saved one by one.

A job that is saved is never repeated, so a study that was paused or killed goes on with the first
that is not.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pandas as pd
import torch

from catlib import PGD, Training
from catlib.training import Record

from ...files import write_whole
from ..batch import execute, parameter_names
from ..batch.engine import Failure, Job, Pause, Processes, Result, ThisProcess, run_jobs
from ..batch.units import NotebookUnit
from ..judge import AUTOATTACK_PART, Measurement, measurements, together
from ..paths import NOTEBOOKS, RESULTS, ROOT
from ..runs import (
    IF_CODE_CHANGED,
    Trial,
    build_training,
    changed_code,
    is_done,
    provenance,
    put_aside,
    read_run,
    run,
    write_json,
)
from ..similarity import neighbour_similarity, staleness
from ..site import write_site
from ..sources import differing
from .plan import Piece, pieces_of
from .tables import Finished, finished_in, finished_runs, write_result, write_table

Where = ThisProcess | Processes
HERE = ThisProcess()


def study(
    profile: str,
    names: Sequence[str] = (),
    *,
    scale: str = "full",
    minutes: float | None = None,
    runs: Path | None = None,
    results: Path | None = None,
    workers: int = 1,
    if_code_changed: str = "refuse",
) -> bool:
    """Run the pieces of a profile, or those named.

    Args:
        minutes: stop, saved, after so long; None goes on to the end.
        runs: folder of the runs; None is ``runs/study/<profile>`` (with ``-tiny`` at that scale).
        results: folder of the tables; None is ``data/results``, for smoke and tiny ``results``
            beside the runs.
        workers: runs at a time; 1 runs them in this process, more in processes of their own.
        if_code_changed: what to do with runs that other code made: "refuse" raises an error,
            "repeat" puts them aside and makes them anew, "reuse" takes them as they are.

    Returns: True when all of it is done, False when the time was up before.

    Raises:
        ValueError: there is no such profile, or it has no piece of one of the names; or there are
            runs of other code, and they are to be refused.
        Failure: some runs failed; all others were done before.
    """
    runs, results = folders(profile, scale, runs, results)
    deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
    pieces = pieces_of(profile, scale)
    unknown = set(names) - {piece.name for piece in pieces}
    if unknown:
        raise ValueError(
            f"{profile} has no piece {', '.join(sorted(unknown))}; "
            f"it has: {', '.join(piece.name for piece in pieces)}."
        )
    chosen = [piece for piece in pieces if not names or piece.name in names]
    settle_other_code(chosen, runs, results, if_code_changed)
    failed: list[Result] = []
    try:
        with ThisProcess() if workers == 1 else Processes(workers) as where:
            for piece in chosen:
                failed += KINDS[piece.kind](piece, runs, results, deadline, where)
    except Pause:
        return False
    if failed:
        files = "".join(f"\n    {result.job.error_file}" for result in failed)
        raise Failure(f"{len(failed)} runs failed; why, is said in{files}")
    return True


def settle_other_code(
    pieces: Sequence[Piece], runs: Path, results: Path, if_code_changed: str
) -> None:
    """Refuse what other code made, make room for it to be made anew, or leave it, as is asked for.

    It is about the folders of runs, finished or begun, and about executed notebooks.

    Raises: ValueError: other code made some of them, and they are to be refused.
    """
    if if_code_changed not in IF_CODE_CHANGED:
        raise ValueError(
            f"if_code_changed is {if_code_changed!r}; "
            f"it must be one of {', '.join(IF_CODE_CHANGED)}."
        )
    if if_code_changed == "reuse":
        return
    places = {run_folder(piece, runs, trial) for piece in pieces for _, trial in piece.trials}
    folders_made = [folder for folder in sorted(places) if (folder / "run.json").exists()]
    notebooks = [notebook_files(piece, results) for piece in pieces if piece.kind == "notebook"]
    notebooks_made = [files for files in notebooks if files.exist()]

    changed = {folder: changed_code(folder) for folder in folders_made}
    changed |= {files.executed: files.changed_code() for files in notebooks_made}
    other = [path for path, names in changed.items() if names]
    if other and if_code_changed == "refuse":
        names = ", ".join(changed[other[0]][:5])
        raise ValueError(
            f"{len(other)} of {len(changed)} runs in {runs} were made by other code, such as "
            f"{other[0].name}; what differs: {names}. Say what to do with them: "
            "--if-code-changed repeat (make them anew) or reuse (take them as they are); "
            "or choose another folder with --runs."
        )
    for folder in folders_made:
        if changed[folder]:
            put_aside(folder)
    for files in notebooks_made:
        if changed[files.executed]:
            files.remove()


def run_folder(piece: Piece, runs: Path, trial: Trial) -> Path:
    """Where a piece keeps what it measures of a trial."""
    if piece.kind in PARTS:
        return runs / f"{piece.kind}-{trial.id}"
    return runs / trial.id


def folders(
    profile: str, scale: str, runs: Path | None = None, results: Path | None = None
) -> tuple[Path, Path]:
    """Where the runs and the tables of a study lie; None is the usual place."""
    trying = scale == "tiny" or profile == "smoke"
    if runs is None:
        runs = ROOT / "runs" / "study" / (f"{profile}-tiny" if scale == "tiny" else profile)
    if results is None:
        results = Path(runs) / "results" if trying else RESULTS
    return Path(runs), Path(results)


def progress(profile: str, scale: str, runs: Path | None = None) -> Iterator[tuple[Piece, int]]:
    """The pieces of a profile, each with how many of its trials are done."""
    runs, _ = folders(profile, scale, runs)
    for piece in pieces_of(profile, scale):
        done = [is_done(run_folder(piece, runs, trial)) for _, trial in piece.trials]
        yield piece, sum(done)


def stop_at(deadline: float) -> None:
    """Raise Pause once the time of the monotonic clock is past ``deadline``."""
    if time.monotonic() > deadline:
        raise Pause


def job_name(piece: Piece, number: int) -> str:
    """How a trial of a piece is called while it runs."""
    arm, trial = piece.trials[number]
    return f"{piece.table} {number + 1}/{len(piece.trials)}  {arm}, seed {trial.seed}"


def do_all(jobs: Sequence[Job], where: Where, after: Callable[[Result], None]) -> list[Result]:
    """Run jobs, and call ``after`` with each result; the results of those that failed.

    Raises: Pause: the time was up.
    """
    results = run_jobs(jobs, where, after)
    if any(result.outcome == "paused" for result in results):
        raise Pause
    return [result for result in results if result.failed]


# ------------------------------------------------------------------ train: the usual piece


@dataclass(frozen=True)
class TrainJob:
    """A trial of a piece of kind "train"."""

    name: str
    trial: Trial
    runs: Path
    deadline: float
    keep_best: bool

    @property
    def error_file(self) -> Path:
        return self.runs / self.trial.id / "error.txt"

    def run(self) -> str:
        stop_at(self.deadline)
        return train_one(self.trial, self.runs, self.deadline, keep_best=self.keep_best)


def train(
    piece: Piece, runs: Path, results: Path, deadline: float, where: Where = HERE
) -> list[Result]:
    """Run the trials, and write the table anew after each."""
    keep_best = piece.options.get("keep_best", False)
    jobs = [
        TrainJob(job_name(piece, number), trial, runs, deadline, keep_best)
        for number, (_, trial) in enumerate(piece.trials)
        if not is_done(runs / trial.id)
    ]
    failed = do_all(jobs, where, lambda _: write_table(piece, runs, results))
    write_table(piece, runs, results)
    return failed


def train_one(trial: Trial, runs: Path, deadline: float, *, keep_best: bool) -> str:
    """Run a trial to its end and say how it ended: "done" or "diverged".

    Args:
        keep_best: keep its best and its last weights; otherwise no weights stay.

    Raises: Pause: the time was up; the run goes on from its checkpoint.
    """
    folder = runs / trial.id

    def observe(training: Training, record: Record) -> None:
        if record.robust_accuracy is None:  # only iterations that are evaluated are saved
            return
        if keep_best:
            save_if_best(training, record.iteration, record.robust_accuracy, folder / "best.pt")
        stop_at(deadline)

    outcome = "done"
    try:
        # runs of other code were refused, put aside or accepted before anything began
        run(trial, runs, observe=observe, if_code_changed="reuse")
    except FloatingPointError as error:  # this is a result of the study, not a failure of the run
        record_divergence(trial, folder, error)
        outcome = "diverged"
    if not keep_best:
        # 90 MB for a ResNet-18, and a run that is done does not need it again
        (folder / "checkpoint.pt").unlink(missing_ok=True)
    return outcome


def save_if_best(training: Training, iteration: int, robust_accuracy: float, path: Path) -> None:
    """Save the weights if their robust accuracy is the best so far."""
    best = -1.0
    if path.exists():
        best = torch.load(path, weights_only=True)["robust_accuracy"]
    if robust_accuracy > best:
        state = {
            "model": training.model.state_dict(),
            "robust_accuracy": robust_accuracy,
            "iteration": iteration,
        }
        write_whole(path, lambda temporary: torch.save(state, temporary))


def record_divergence(trial: Trial, folder: Path, error: Exception) -> None:
    """A run whose loss became NaN or infinite ends there: it is done, with its records so far."""
    if not (folder / "records.csv").exists():
        columns = [*(field.name for field in fields(Record)), "batch_accuracy"]
        write_whole(folder / "records.csv", (",".join(columns) + "\n").encode())
    info = provenance(trial, build_training(trial))
    ending = {"diverged": str(error), "final": {}}
    write_json(folder / "run.json", {"status": "done", **info, **ending})


# ------------------------------------------------------------------ similarity: Fig. 1; and draws


@dataclass(frozen=True)
class Part:
    """One of the tables that are measured of every trial of such a piece."""

    name: str
    suffix: str  # of the piece's table
    measure: Callable[[Training, Trial, dict], pd.DataFrame]


@dataclass(frozen=True)
class PartsJob:
    """What is measured along the training of one trial."""

    name: str
    piece: Piece
    trial: Trial
    folder: Path
    deadline: float

    @property
    def error_file(self) -> Path:
        return self.folder / "error.txt"

    def run(self) -> None:
        measure_parts(self.piece, self.trial, self.folder, self.deadline)


def parts(
    piece: Piece, runs: Path, results: Path, deadline: float, where: Where = HERE
) -> list[Result]:
    """The tables of a piece of kind "similarity" or "draws", from trainings of its own."""
    jobs = []
    for number, (_, trial) in enumerate(piece.trials):
        folder = run_folder(piece, runs, trial)
        if not is_done(folder):
            jobs.append(PartsJob(job_name(piece, number), piece, trial, folder, deadline))
    failed = do_all(jobs, where, lambda _: write_parts(piece, runs, results))
    write_parts(piece, runs, results)
    return failed


def measure_parts(piece: Piece, trial: Trial, folder: Path, deadline: float) -> None:
    """Measure the parts that the folder lacks, each along a training of its own.

    The run.json is there from the beginning, with the digests of the code, so that parts which a
    killed study left are used again only as :func:`settle_other_code` allows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    begun = (folder / "run.json").exists()
    stretches = read_run(folder).get("stretches", []) if begun else []
    known = provenance(trial, build_training(trial))
    info = {**known, "stretches": [*stretches, known]}
    write_json(folder / "run.json", {"status": "running", **info})
    for part in PARTS[piece.kind]:
        path = folder / f"{part.name}.csv"
        if begun and path.exists():
            continue
        stop_at(deadline)
        training = build_training(trial)
        training.evaluate_every = 0
        table = part.measure(training, trial, piece.options)
        write_whole(path, table.to_csv(index=False).encode())
    write_json(folder / "run.json", {"status": "done", **info})


def measure_neighbours(training: Training, trial: Trial, options: dict) -> pd.DataFrame:
    count = 16 if options["tiny"] else options.get("images", 200)
    images, labels = training.data.test(slice(count))
    return neighbour_similarity(training, images, labels, gaps=(1, 10), attack=trial.attack())


def measure_staleness(training: Training, trial: Trial, options: dict) -> pd.DataFrame:
    count = 64 if options["tiny"] else 1000
    examples = torch.arange(min(count, len(training.data.y_train)))
    if trial.iterations is None:
        raise ValueError("iterations is None; staleness is measured over a given number of them.")
    return staleness(training, examples=examples, every=max(1, trial.iterations // 6))


def measure_draw(training: Training, trial: Trial, options: dict) -> pd.DataFrame:
    """The draw that would come after the last iteration: a row for each drawn image.

    Columns: seed, alpha; image (its index), label, weight (w of Eq. 4); below, the share of its
    class's images that weigh less; class_median, the median weight of its class.
    """
    for _ in training:
        pass
    weights = training.sampler.weights.cpu()
    labels = training.data.y_train.cpu()
    rows = []
    for image in training.sampler.draw().tolist():
        of_class = weights[labels == labels[image]]
        row = {"seed": trial.seed, "alpha": trial.alpha, "image": image}
        row |= {"label": labels[image].item(), "weight": weights[image].item()}
        row["below"] = (of_class < weights[image]).double().mean().item()
        rows.append(row | {"class_median": of_class.median().item()})
    return pd.DataFrame(rows)


PARTS = {
    "similarity": (
        Part("neighbours", "", measure_neighbours),
        Part("staleness", "_staleness", measure_staleness),
    ),
    "draws": (Part("draw", "", measure_draw),),
}


def write_parts(piece: Piece, runs: Path, results: Path) -> None:
    """The tables of a piece, from the parts of the finished runs."""
    finished = [
        finished_in(run_folder(piece, runs, trial), arm, trial)
        for arm, trial in piece.trials
        if is_done(run_folder(piece, runs, trial))
    ]
    if not finished:
        return
    for part in PARTS[piece.kind]:
        tables = [
            read_part(one.folder / f"{part.name}.csv").assign(arm=one.arm).round(4)
            for one in finished
        ]
        named = replace(piece, name=piece.name + part.suffix)
        write_result(named, pd.concat(tables, ignore_index=True), finished, results)


def read_part(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except pd.errors.EmptyDataError:  # no group of examples was large enough
        return pd.DataFrame()


# ------------------------------------------------------------------ notebook


@dataclass(frozen=True)
class NotebookFiles:
    """What a piece of kind "notebook" leaves beside the results."""

    source: Path  # the notebook of the course
    executed: Path

    @property
    def page(self) -> Path:
        return self.executed.with_suffix(".html")

    @property
    def record(self) -> Path:
        """Says which code the notebook was executed with."""
        return self.executed.with_suffix(".code.json")

    def exist(self) -> bool:
        return self.executed.exists() or self.page.exists()

    def code(self) -> dict[str, str]:
        """The digests of the code that decides what the notebook shows, as a batch takes them."""
        return NotebookUnit(self.source, {}, self.executed.parent).code()

    def changed_code(self) -> list[str]:
        """Names of the files that differ now from those that the notebook was executed with."""
        if not self.record.exists():
            return ["perhaps all files, as the notebook does not say what code it is of"]
        return differing(json.loads(self.record.read_text()), self.code())

    def remove(self) -> None:
        for path in (self.page, self.executed, self.record):
            path.unlink(missing_ok=True)


def notebook_files(piece: Piece, results: Path) -> NotebookFiles:
    name = f"{piece.options['notebook']}.ipynb"
    return NotebookFiles(NOTEBOOKS / name, results / "notebooks" / name)


def notebook(
    piece: Piece, runs: Path, results: Path, deadline: float, where: Where = HERE
) -> list[Result]:
    """A notebook of the course at the scale of the paper, and its page beside the results.

    Its own runs are what takes long. They go on from their checkpoints, so it may be cut off in any
    cell.
    """
    files = notebook_files(piece, results)
    if files.page.exists():  # settle_other_code has removed a page of other code, if it was to
        return []
    if not files.executed.exists():
        stop_at(deadline)
        files.record.parent.mkdir(parents=True, exist_ok=True)
        write_json(files.record, files.code())
        execute_notebook(piece, files.executed, runs, deadline)
    write_site([files.executed], files.executed.parent)
    print(f"{piece.table}: {files.executed.name}, {files.page.name}", flush=True)
    return []


def execute_notebook(piece: Piece, target: Path, runs: Path, deadline: float) -> None:
    """Execute the notebook with those of the piece's parameters that it has."""
    from nbclient.exceptions import CellTimeoutError

    source = NOTEBOOKS / target.name
    values = piece.options["tiny_parameters" if piece.options["tiny"] else "parameters"]
    values = values | {"output_dir": str(runs / source.stem)}
    names = parameter_names(source)
    seconds = min(deadline - time.monotonic(), 3600)
    try:
        execute(
            source,
            target,
            {name: value for name, value in values.items() if name in names},
            timeout=max(int(seconds), 1),
        )
    except CellTimeoutError:
        stop_at(deadline)
        raise


# ------------------------------------------------------------------ finals, after a long run


@dataclass(frozen=True)
class FinalModel:
    """Weights that a long run left, and the iteration after which they were saved."""

    name: str
    weights: dict
    iteration: int


def finals(
    piece: Piece, runs: Path, results: Path, deadline: float, where: Where = HERE
) -> list[Result]:
    """Judge the best and the last model of each finished long run, in this process."""
    scale = "tiny" if piece.options["tiny"] else "full"
    long = next(p for p in pieces_of(piece.profile, scale) if p.name == piece.options["of"])
    finished = finished_runs(long, runs)
    rows = [row for one in finished for row in judge_run(one, piece.options, deadline)]
    if rows:
        write_result(replace(piece, trials=long.trials), pd.DataFrame(rows), finished, results)
    return []


def judge_run(one: Finished, options: dict, deadline: float) -> list[dict]:
    """A row for each of the run's final models."""
    training = build_training(one.trial)
    records = pd.read_csv(one.folder / "records.csv").set_index("iteration")
    rows = []
    for final in final_models(one.folder, records.index[-1], training.device):
        training.model.load_state_dict(final.weights)
        jobs = final_measurements(training, one.trial, options)
        measured = do_missing(jobs, one.folder / f"finals-{final.name}.json", deadline)
        row = {
            "arm": one.arm,
            "seed": one.trial.seed,
            "model": final.name,
            "iteration": final.iteration,
            "coverage": round(records.coverage[final.iteration], 4),
        }
        row |= {
            name: round(value, 4)
            for name, value in together(measured, autoattack_size(options)).items()
        }
        rows.append(row)
    return rows


def autoattack_size(options: dict) -> int:
    """How many test images AutoAttack is given."""
    return 8 if options["tiny"] else options["autoattack_size"]


def final_measurements(
    training: Training, trial: Trial, options: dict
) -> Iterator[tuple[str, Measurement]]:
    """What is measured of a final model; at the scale "tiny" on a few images, by one attack."""
    tiny = options["tiny"]
    images, labels = training.data.test(slice(32 if tiny else None))
    attack = trial.judge(restarts=2 if tiny else 10)
    if not isinstance(attack, PGD):
        raise ValueError(f"a final model is judged by PGD, not by {type(attack).__name__}.")
    return measurements(
        training.model,
        images,
        labels,
        attack,
        autoattack=autoattack_size(options),
        part=4 if tiny else AUTOATTACK_PART,
        attacks=["apgd-ce"] if tiny else None,
    )


def final_models(folder: Path, last_iteration: int, device: torch.device) -> list[FinalModel]:
    best = torch.load(folder / "best.pt", weights_only=True, map_location=device)
    last = torch.load(folder / "checkpoint.pt", weights_only=True, map_location=device)
    return [
        FinalModel("best", best["model"], best["iteration"]),
        FinalModel("last", last["training"]["model"], last_iteration),
    ]


def do_missing(
    jobs: Iterable[tuple[str, Callable[[], float]]], path: Path, deadline: float
) -> dict[str, float]:
    """Do the jobs whose results a JSON file lacks, and save it after each; all results by name."""
    results = json.loads(path.read_text()) if path.exists() else {}
    for name, job in jobs:
        if name not in results:
            stop_at(deadline)
            results[name] = job()
            write_json(path, results)
    return results


KINDS = {
    "train": train,
    "similarity": parts,
    "draws": parts,
    "notebook": notebook,
    "finals": finals,
}
