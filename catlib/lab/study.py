"""The study: does CAT do what the paper says? Every run and every table, from one configuration, study.toml.

    python -m catlib.lab.batch study --profile smoke                 # every kind of piece on the embedded digits, a minute
    python -m catlib.lab.batch study --profile paper --list          # the pieces, and how much of each is done
    python -m catlib.lab.batch study --profile paper --piece cifar10_tables --minutes 9
    python -m catlib.lab.study page                                  # data/results/README.md and the README's results

A study that was stopped or killed goes on where it was when the command is given again: every trial is a run with
checkpoints (catlib.lab.runs), and the tables are written anew from the finished runs, whenever one finishes.
"""

import argparse
import itertools
import json
import re
import shlex
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path

import pandas as pd
import torch

from catlib import accuracy, robust_accuracy
from catlib.data import ROOT

from .runs import Trial, build_training, is_done, provenance, run, write_json, write_whole

CONFIGURATION = Path(__file__).with_name("study.toml")
RESULTS = ROOT / "data" / "results"
SETTINGS = {f.name for f in fields(Trial)}
DIGITS = {
    "seconds": 2,
    "loss": 4,
    "coverage": 4,
    "accuracy": 4,
    "robust_accuracy": 4,
    "batch_accuracy": 4,
}
PAUSED = 3  # exit status: time is up, work is left


class Pause(Exception):
    """The time that was given is over; what was done is saved."""


@dataclass(frozen=True)
class Piece:
    """One table of the study: ``trials`` are the runs behind it, each with the name of its arm."""

    profile: str
    name: str
    about: str
    kind: str
    trials: tuple[tuple[str, Trial], ...]
    levels: dict
    options: dict

    @property
    def table(self) -> str:
        return f"{self.profile}_{self.name}"

    @property
    def command(self) -> str:
        return f"python -m catlib.lab.batch study --profile {self.profile} --piece {self.name}"


@lru_cache
def configuration() -> dict:
    return tomllib.loads(CONFIGURATION.read_text(encoding="utf-8"))


def profiles() -> list[str]:
    return [name for name in configuration() if name not in ("arms", "deviations")]


def pieces_of(profile: str, scale: str = "full") -> list[Piece]:
    """The pieces of a profile, in the order in which they run. ``scale="tiny"`` tries them in minutes."""
    chosen = configuration()[profile]
    pieces = []
    for entry in chosen["pieces"]:
        tiny = chosen.get("tiny", {}) | entry.get("tiny", {}) if scale == "tiny" else {}
        settings = chosen["settings"] | {
            key: value for key, value in entry.items() if key in SETTINGS
        }
        options = {key: value for key, value in entry.items() if key not in SETTINGS}
        trials, grid = (
            [],
            {
                name: values[:2] if tiny else values
                for name, values in entry.get("grid", {}).items()
            },
        )
        for seed in range(
            min(entry.get("seeds", 0), 1 if tiny else 99)
        ):  # seed by seed, so that pairs come early
            for values in itertools.product(*grid.values()):
                for arm in entry.get("arms", ()):
                    own = (
                        settings
                        | configuration()["arms"][arm]
                        | dict(zip(grid, values, strict=True))
                        | {"seed": seed}
                    )
                    trials.append((arm, make_trial(own, tiny)))
        pieces.append(
            Piece(
                profile,
                entry["name"],
                entry["about"],
                entry.get("kind", "train"),
                tuple(trials),
                entry.get("levels", {}),
                options | {"tiny": bool(tiny)},
            )
        )
    return pieces


def make_trial(settings: dict, tiny: dict) -> Trial:
    """A trial from settings that may scale its epsilon ("scaled", "normalised") or give its step in epsilons ("step")."""
    settings = dict(settings)
    factor = settings.pop("scaled", 1) * (
        configuration()["deviations"][settings["dataset"]]
        if settings.pop("normalised", False)
        else 1
    )
    if factor != 1:
        settings["epsilon"] = round(settings["epsilon"] * factor, 6)
    if "step" in settings:
        settings["step_size"] = round(settings.pop("step") * settings["epsilon"], 6)
    if tiny:
        k = max(2, settings.get("sampling_number", 128) // 16)
        settings |= {
            key: value
            for key, value in tiny.items()
            if key != "steps" or settings.get("steps", 10) > value
        }
        settings |= {
            "sampling_number": k,
            "final_restarts": min(settings.get("final_restarts", 0), 2),
        }
    return Trial(**settings)


def study(
    profile: str,
    names=(),
    *,
    scale: str = "full",
    minutes: float | None = None,
    runs: Path | None = None,
    results: Path | None = None,
) -> bool:
    """Run the pieces of a profile, or those named; True when all of it is done, False when the time was up before.

    Args:
        runs: folder of the runs; None is ``runs/study/<profile>`` (with ``-tiny`` at that scale).
        results: folder of the tables; None is ``data/results``, for smoke and tiny ``results`` beside the runs.
    """
    runs, results = folders(profile, scale, runs, results)
    deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
    pieces = pieces_of(profile, scale)
    if unknown := set(names) - {piece.name for piece in pieces}:
        raise ValueError(
            f"{profile} has no piece {', '.join(sorted(unknown))}; it has: {', '.join(p.name for p in pieces)}."
        )
    try:
        for piece in pieces:
            if not names or piece.name in names:
                KINDS[piece.kind](piece, runs, results, deadline)
    except Pause:
        print(f"The time is up. The same command goes on: {command_line()}", flush=True)
        return False
    return True


def folders(profile: str, scale: str, runs=None, results=None) -> tuple[Path, Path]:
    trying = scale == "tiny" or profile == "smoke"
    runs = Path(runs or ROOT / "runs" / "study" / (profile + ("-tiny" if scale == "tiny" else "")))
    return runs, Path(results or (runs / "results" if trying else RESULTS))


def command_line() -> str:
    return f"python -m catlib.lab.batch study {shlex.join(a for a in sys.argv[1:] if a != 'study')}"


def train(piece: Piece, runs: Path, results: Path, deadline: float) -> None:
    """The usual piece: run the trials, and write the table anew after each."""
    for number, (arm, trial) in enumerate(piece.trials, 1):
        if is_done(runs / trial.id):
            continue
        stop_at(deadline)
        started = time.monotonic()
        keep = keep_best(runs / trial.id) if piece.options.get("keep_best") else None
        outcome = "done"
        try:
            run(
                trial,
                runs,
                observe=lambda training, record, keep=keep: _observe(
                    training, record, keep, deadline
                ),
            )
        except (
            FloatingPointError
        ) as error:  # a finding, not an accident: such a run has no further records
            record_divergence(trial, runs / trial.id, error)
            outcome = "diverged"
        if not keep:
            (runs / trial.id / "checkpoint.pt").unlink(
                missing_ok=True
            )  # 90 MB for a ResNet-18, and nobody asks for it again
        which = f"{piece.table} {number}/{len(piece.trials)}  {arm}, seed {trial.seed}"
        print(f"{which}: {outcome}, {time.monotonic() - started:.0f} s", flush=True)
        write_table(piece, runs, results)
    write_table(piece, runs, results)


def stop_at(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise Pause


def _observe(training, record, keep: Callable | None, deadline: float) -> None:
    if record.accuracy is not None:  # just saved
        if keep:
            keep(training, record)
        stop_at(deadline)


def keep_best(folder: Path) -> Callable:
    """Keep the weights with the best robust accuracy so far, beside the checkpoint."""
    path = folder / "best.pt"

    def keep(training, record):
        best = torch.load(path, weights_only=True)["robust_accuracy"] if path.exists() else -1.0
        if record.robust_accuracy > best:
            state = {
                "model": training.model.state_dict(),
                "robust_accuracy": record.robust_accuracy,
                "iteration": record.iteration,
            }
            write_whole(path, lambda temporary: torch.save(state, temporary))

    return keep


def record_divergence(trial: Trial, folder: Path, error: Exception) -> None:
    """A run whose loss left the finite numbers ends there: it is done, with the records that it has."""
    training = build_training(trial)
    if not (folder / "records.csv").exists():
        write_whole(
            folder / "records.csv",
            b"iteration,examples,passes,seconds,loss,coverage,accuracy,robust_accuracy,batch_accuracy\n",
        )
    write_json(
        folder / "run.json",
        {"status": "done", **provenance(trial, training), "diverged": str(error), "final": {}},
    )


def rows_of(piece: Piece, runs: Path) -> pd.DataFrame:
    """A row an evaluation of every finished run: arm, seed, the settings in which trials differ, and what was measured."""
    varying = [
        f.name
        for f in fields(Trial)
        if f.name != "seed" and len({getattr(t, f.name) for _, t in piece.trials}) > 1
    ]
    tables = []
    for arm, trial in piece.trials:
        if is_done(runs / trial.id):
            table = pd.read_csv(runs / trial.id / "records.csv").round(DIGITS)
            final = json.loads((runs / trial.id / "run.json").read_text())["final"]
            for name, value in final.items():  # on the last row alone
                table[f"final_{name}"] = [None] * (len(table) - 1) + [round(value, 4)]
            tables.append(
                pd.DataFrame(
                    {"arm": arm, "seed": trial.seed}
                    | {name: getattr(trial, name) for name in varying},
                    index=table.index,
                ).join(table.drop(columns="examples"))
            )
    tables = [table for table in tables if len(table)]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def write_table(piece: Piece, runs: Path, results: Path) -> None:
    table = rows_of(piece, runs)
    if len(table):
        done = [trial for _, trial in piece.trials if is_done(runs / trial.id)]
        infos = [json.loads((runs / trial.id / "run.json").read_text()) for trial in done]
        diverged = [
            f"{arm}, seed {trial.seed}"
            for arm, trial in piece.trials
            if (runs / trial.id / "run.json").exists()
            and "diverged" in json.loads((runs / trial.id / "run.json").read_text())
        ]
        write_result(
            piece,
            table,
            results,
            infos,
            done,
            {"diverged": "; ".join(diverged)} if diverged else {},
        )


def write_result(
    piece: Piece,
    table: pd.DataFrame,
    results: Path,
    infos: list[dict],
    done: list[Trial],
    more=None,
) -> None:
    """The table as CSV below lines that say where it is from. A part of the runs never takes the place of more of them."""
    path = results / f"{piece.table}.csv"
    there = (
        re.search(r"^# runs: (\d+) of", path.read_text(encoding="utf-8"), re.MULTILINE)
        if path.exists()
        else None
    )
    if len(done) < len(piece.trials) and there and int(there[1]) > len(done):
        if len(done) == 1:
            print(
                f"{path.name} stays as it is, of {there[1]} runs, until this study has as many",
                flush=True,
            )
        return
    results.mkdir(parents=True, exist_ok=True)
    lines = [
        piece.about,
        *(f"{key}: {value}" for key, value in header(piece, infos, done).items()),
        *(f"{key}: {value}" for key, value in (more or {}).items()),
    ]
    text = "".join(f"# {line}\n" for line in lines) + table.to_csv(index=False, lineterminator="\n")
    write_whole(path, text.encode())


def header(piece: Piece, infos: list[dict], done: list[Trial]) -> dict:
    """What one must know to believe the table."""

    def of(name):
        values = list(dict.fromkeys(getattr(trial, name) for trial in done))
        return " | ".join(
            f"{value:.4g}" if isinstance(value, float) else str(value) for value in values
        )

    def all_of(key):
        return " | ".join(dict.fromkeys(str(info[key]) for info in infos))

    count = of("evaluation_size")
    lines = {
        "dataset": of("dataset")
        + (f", first {of('train_size')} training images" if of("train_size") != "None" else ""),
        "model": of("model"),
        "threat model": f"{of('norm')}, epsilon {of('epsilon')}, images in [0, 1]",
        "training attack": f"{of('crafting')}, {of('steps')} steps of {of('step_size').replace('None', '2.5 epsilon / steps')}, "
        f"{of('restarts')} restarts, rule {of('rule')}",
        "update": f"{of('optimizer')}, learning rate {of('learning_rate')}, schedule {of('schedule')}, weight decay "
        f"{of('weight_decay')}, batch {of('sampling_number')}, augmentation {of('augment')}, "
        f"epsilon grows over {of('epsilon_warm_up')} iterations",
    }
    if piece.kind == "train":
        lines["evaluation"] = (
            f"first {count} test images, PGD-{of('evaluation_steps')}, one random start, rule {of('evaluation_rule')}; "
            f"tick: every {of('evaluate_every')} iterations; batch_accuracy is on the training batch, before its update"
        )
        if any(trial.final_restarts for trial in done):
            restarts, images = of("final_restarts"), of("final_size").replace("None", "all")
            lines["final"] = (
                f"PGD-{of('evaluation_steps')} with {restarts} restarts on {images} test images"
            )
    lines |= {
        "seeds": " ".join(sorted({str(trial.seed) for trial in done}, key=int)),
        "runs": f"{len(done)} of {len(piece.trials)}",
        "device": f"{all_of('device')}, {all_of('threads')} threads",
        "versions": " | ".join(
            dict.fromkeys(
                ", ".join(f"{k} {v}" for k, v in info["versions"].items()) for info in infos
            )
        ),
        "code": all_of("revision"),
        "command": piece.command,
    }
    return lines


def similarity(piece: Piece, runs: Path, results: Path, deadline: float) -> None:
    """Fig. 1 from runs of its own, and how well an old weight still ranks examples; a part for every trial."""
    from .similarity import neighbour_similarity, staleness

    def near(training, trial):
        images, labels = training.data.test(
            slice(16 if piece.options["tiny"] else piece.options.get("images", 200))
        )
        return neighbour_similarity(training, images, labels, gaps=(1, 10), attack=trial.attack())

    def old(training, trial):
        examples = torch.arange(
            min(64 if piece.options["tiny"] else 1000, len(training.data.y_train))
        )
        return staleness(training, examples=examples, every=max(1, trial.iterations // 6))

    parts, infos, done = [], [], []
    for arm, trial in piece.trials:
        folder = runs / f"similarity-{trial.id}"
        if new := not is_done(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, measure in (("neighbours", near), ("staleness", old)):
                if not (folder / f"{name}.csv").exists():
                    stop_at(deadline)
                    started, training = time.monotonic(), build_training(trial)
                    training.evaluate_every = 0
                    table = measure(training, trial)
                    write_whole(folder / f"{name}.csv", table.to_csv(index=False).encode())
                    print(
                        f"{piece.table}  {name}, {arm}, seed {trial.seed}: {time.monotonic() - started:.0f} s",
                        flush=True,
                    )
            write_json(
                folder / "run.json", {"status": "done", **provenance(trial, build_training(trial))}
            )
        parts.append((arm, folder))
        done.append(trial)
        infos.append(json.loads((folder / "run.json").read_text()))
        if new or len(done) == len(piece.trials):
            for name, suffix in (("neighbours", ""), ("staleness", "_staleness")):
                table = pd.concat(
                    [_read(path / f"{name}.csv").assign(arm=of).round(4) for of, path in parts],
                    ignore_index=True,
                )
                write_result(replace(piece, name=piece.name + suffix), table, results, infos, done)


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except pd.errors.EmptyDataError:  # no group of examples was large enough
        return pd.DataFrame()


def notebook(piece: Piece, runs: Path, results: Path, deadline: float) -> None:
    """A notebook of the course at the scale of the paper, and its page beside the results.

    Its own runs are what takes long. They go on from their checkpoints, so it may be cut off in any cell.
    """
    from nbclient.exceptions import CellTimeoutError

    from .batch import execute, parameter_names
    from .site import write_site

    target = results / "notebooks" / f"{piece.options['notebook']}.ipynb"
    if target.with_suffix(".html").exists():
        return
    if not target.exists():
        stop_at(deadline)
        source = ROOT / "notebooks" / target.name
        values = piece.options["tiny_parameters" if piece.options["tiny"] else "parameters"]
        values = values | {"output_dir": str(runs / source.stem)}
        left = min(deadline - time.monotonic(), 3600)
        try:
            execute(
                source,
                target,
                {name: values[name] for name in parameter_names(source) if name in values},
                timeout=max(int(left), 1),
            )
        except CellTimeoutError:
            stop_at(deadline)
            raise
    write_site([target], target.parent)
    print(f"{piece.table}: {target.name}, {target.with_suffix('.html').name}", flush=True)


def finals(piece: Piece, runs: Path, results: Path, deadline: float) -> None:
    """Judge the best and the last model of each finished long run; every measurement is saved when it is made."""
    scale = "tiny" if piece.options["tiny"] else "full"
    source = next(p for p in pieces_of(piece.profile, scale) if p.name == piece.options["of"])
    rows, infos, done = [], [], []
    for arm, trial in source.trials:
        folder = runs / trial.id
        if not is_done(folder):
            continue
        for which in ("best", "last"):
            path = folder / f"finals-{which}.json"
            measured = json.loads(path.read_text()) if path.exists() else {}
            training = build_training(trial)
            stored = torch.load(
                folder / ("best.pt" if which == "best" else "checkpoint.pt"),
                weights_only=True,
                map_location=training.device,
            )
            training.model.load_state_dict(
                stored["model"] if which == "best" else stored["training"]["model"]
            )
            for name, measure in measurements(training, trial, piece.options):
                if name not in measured:
                    stop_at(deadline)
                    measured[name] = measure()
                    write_json(path, measured)
            records = pd.read_csv(folder / "records.csv").set_index("iteration")
            at = stored["iteration"] if which == "best" else records.index[-1]
            rows.append(
                {
                    "arm": arm,
                    "seed": trial.seed,
                    "model": which,
                    "iteration": at,
                    "coverage": round(records.coverage[at], 4),
                    **{k: round(v, 4) for k, v in together(measured).items()},
                }
            )
        infos.append(json.loads((folder / "run.json").read_text()))
        done.append(trial)
    if rows:
        write_result(replace(piece, trials=source.trials), pd.DataFrame(rows), results, infos, done)


def measurements(
    training, trial: Trial, options: dict
) -> Iterator[tuple[str, Callable[[], float]]]:
    """Names and functions: what is said of a final model, one number each."""
    model = training.model.eval()
    n = 32 if options["tiny"] else None
    images, labels = training.data.test(slice(n))
    judge = trial.judge(restarts=2 if options["tiny"] else 10)
    once = replace(judge, restarts=1)

    def worst_class():
        return min(
            robust_accuracy(model, images[labels == c], labels[labels == c], once)
            for c in labels.unique()
        )

    def autoattack(part):
        from pyautoattack import AutoAttack

        version = (
            {"version": "custom", "attacks": ["apgd-ce"]}
            if options["tiny"]
            else {"version": "standard"}
        )
        attack = AutoAttack(
            model, norm="Linf", eps=trial.epsilon, device=training.device, seed=0, **version
        )
        adversarial, _ = attack.run_standard_evaluation(images[part], labels[part], batch_size=500)
        return accuracy(model, adversarial, labels[part])

    def rescaled(factor):
        class Scaled(torch.nn.Module):
            def forward(self, x):
                return factor * model(x)

        return lambda: robust_accuracy(Scaled().eval(), images[:1000], labels[:1000], once)

    yield "accuracy", lambda: accuracy(model, images, labels)
    yield f"pgd_20_{judge.restarts}", lambda: robust_accuracy(model, images, labels, judge)
    yield "worst_class_pgd_20", worst_class
    yield "calibration_error", lambda: calibration_error(model, images, labels)
    for factor in (0.1, 1, 10, 100):
        yield f"pgd_20_logits_x{factor:g}", rescaled(factor)
    size, part = (8, 4) if options["tiny"] else (options["autoattack_size"], 250)
    if size % part:
        raise ValueError(
            f"autoattack_size is {size}; it must be a multiple of {part}, as its parts count alike."
        )
    for start in range(0, size, part):
        yield f"autoattack_{start}", partial(autoattack, slice(start, start + part))


def together(measured: dict[str, float]) -> dict[str, float]:
    """AutoAttack's parts, which are of one size, as one number."""
    parts = [name for name in measured if name.startswith("autoattack_")]
    rest = {name: value for name, value in measured.items() if name not in parts}
    return rest | {"autoattack": sum(measured[name] for name in parts) / len(parts)}


@torch.no_grad()
def calibration_error(model, images, labels, bins: int = 15) -> float:
    """Expected calibration error on clean images: how far confidence lies from accuracy, in bins of confidence."""
    confidence, predicted = torch.cat([model(x).softmax(1) for x in images.split(1000)]).max(1)
    right = (predicted == labels).double()
    which = (confidence * bins).long().clamp(max=bins - 1)
    return sum(
        abs(right[which == b].mean() - confidence[which == b].double().mean()).item()
        * (which == b).double().mean().item()
        for b in which.unique()
    )


KINDS = {"train": train, "similarity": similarity, "notebook": notebook, "finals": finals}


def show(profile: str, scale: str, runs: Path | None) -> None:
    """The pieces and how much of each is done."""
    runs, _ = folders(profile, scale, runs)
    for piece in pieces_of(profile, scale):
        prefix = "similarity-" if piece.kind == "similarity" else ""
        done = sum(is_done(runs / (prefix + trial.id)) for _, trial in piece.trials)
        print(f"{piece.name:<26}{done:>4}/{len(piece.trials):<4} {piece.about}")


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m catlib.lab.study", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=("run", "page"),
        default="run",
        help="run the study, or write the claims page from its tables",
    )
    parser.add_argument("--profile", choices=profiles(), default="smoke")
    parser.add_argument(
        "--piece", action="append", default=[], help="only this piece; may be given again"
    )
    parser.add_argument(
        "--scale",
        choices=("full", "tiny"),
        default="full",
        help="tiny: the paper profile from end to end, in minutes",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help=f"stop, saved, after so long; the exit status is then {PAUSED}",
    )
    parser.add_argument("--runs", type=Path, help="folder of the runs and their checkpoints")
    parser.add_argument("--results", type=Path, help="folder of the tables")
    parser.add_argument("--list", action="store_true", help="show the pieces and what is done")
    options = parser.parse_args(arguments)
    if options.what == "page":
        from .pages import write_pages

        write_pages(options.results or RESULTS)
    elif options.list:
        show(options.profile, options.scale, options.runs)
    else:
        try:
            done = study(
                options.profile,
                options.piece,
                scale=options.scale,
                minutes=options.minutes,
                runs=options.runs,
                results=options.results,
            )
        except ValueError as error:
            parser.error(str(error))
        return 0 if done else PAUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
