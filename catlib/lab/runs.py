"""A run: its settings as one value, and what it leaves behind, whole or not at all.

    trial = Trial(dataset="mnist", method="CAT", epsilon=0.1, seed=3)
    folder = run(trial, "runs")          # runs/<trial.id>/: run.json, records.csv, checkpoint.pt
    table = read_records("runs")         # every record of every finished run, with its settings

A run that was killed goes on from its last checkpoint when it is called again, and a finished one is not repeated.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

import catlib
from catlib import (
    PGD,
    CaseSampler,
    Training,
    UniformSampler,
    accuracy,
    build_model,
    crop_and_flip,
    load_data,
    robust_accuracy,
)
from catlib.data import ROOT

METHODS = ("AT", "CAT")
CRAFTING = ("pgd", "n-fgsm", "free", "batch mean")
UNIFORM = 1e12  # a temperature at which all weights count the same


def _standardised(w: torch.Tensor) -> torch.Tensor:
    return (w - w.mean()) / w.std().clamp(min=1e-6)


# how a weight w of Eq. 4 becomes the logarithm of a probability, up to a constant; None is w / temperature
WEIGHTINGS: dict[str, Callable | None] = {
    "power": None,
    "inverted": lambda w: -_standardised(w),
    "boundary": lambda w: -_standardised(w.abs()),
    "softplus": lambda w: torch.nn.functional.softplus(w).clamp(min=1e-30).log(),
    "clamp": lambda w: w.clamp(min=1e-3).log(),
    "rank": lambda w: (w.argsort().argsort() + 1.0).log(),
}


@dataclass(frozen=True)
class Trial:
    """The settings of one run: plain values, so that papermill, JSON and a cluster can carry them.

    ``method`` is "AT" (UniformSampler) or "CAT" (CaseSampler); what CAT alone uses is ignored by AT.
    """

    dataset: str = "digits"
    model: str = "cnn"
    method: str = "CAT"
    seed: int = 0
    iterations: int = 200
    sampling_number: int = 128
    train_size: int | None = None  # train on the first so many images alone
    # the sampler
    alpha: float = 0.5
    class_balanced: bool = True
    temperature: float | str = "auto"
    weighting: str = "power"
    warm_up: int = 0  # iterations of uniform draws before weights count
    # the attack in training; its epsilon is that of the evaluation too
    epsilon: float = 0.1
    step_size: float | None = None
    steps: int = 10
    restarts: int = 1
    rule: str = "sign"
    norm: str = "linf"
    batch_norm: str = "eval"
    epsilon_warm_up: int = 0  # iterations over which epsilon grows from 0
    crafting: str = "pgd"  # or a cheap rival (catlib.lab.baselines): "n-fgsm"; "free", whose replays are ``steps``; or "batch mean"
    # the update
    optimizer: str = "sgd"
    learning_rate: float = 0.05
    weight_decay: float = 0.0
    schedule: str = "constant"  # or "cyclic": up to the learning rate and down to 0
    augment: bool = False
    # the evaluation, on the first evaluation_size test images
    evaluate_every: int = 10
    evaluation_size: int = 500
    evaluation_steps: int = 20
    evaluation_epsilon: float | None = None  # None is that of training
    evaluation_rule: str = "sign"  # a rule of PGD, or "batch mean"
    final_restarts: int = (
        0  # PGD-20 with so many restarts on the whole test set at the end; 0 is none
    )
    final_size: int | None = None  # the first so many test images instead
    # the machine
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False

    def __post_init__(self):
        for name, allowed in (
            ("method", METHODS),
            ("weighting", tuple(WEIGHTINGS)),
            ("optimizer", ("sgd", "adam")),
            ("schedule", ("constant", "cyclic")),
            ("crafting", CRAFTING),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}."
                )

    @property
    def id(self) -> str:
        """Readable beginning, then a digest of every setting that is not a default: new settings keep old ids."""
        chosen = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if getattr(self, f.name) != f.default
        }
        digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.dataset}-{self.model}-{self.method}-k{self.sampling_number}-s{self.seed}-{digest}"

    def attack(self) -> PGD:
        return PGD(
            self.epsilon,
            self.step_size,
            self.steps,
            self.restarts,
            rule=self.rule,
            norm=self.norm,
            batch_norm=self.batch_norm,
        )

    def judge(self, restarts: int = 1) -> Callable:
        """The attack of the evaluations."""
        epsilon = self.epsilon if self.evaluation_epsilon is None else self.evaluation_epsilon
        if self.evaluation_rule == "batch mean":
            from .baselines import BatchMean

            return BatchMean(epsilon, self.evaluation_steps)
        return PGD(
            epsilon,
            steps=self.evaluation_steps,
            restarts=restarts,
            rule=self.evaluation_rule,
            norm=self.norm,
        )


def build_training(trial: Trial, *, progress: bool = False) -> Training:
    """The Training that a trial describes, before its first iteration."""
    device = (
        ("cuda" if torch.cuda.is_available() else "cpu") if trial.device == "auto" else trial.device
    )
    data = load_data(trial.dataset).to(device)
    data = replace(
        data, x_train=data.x_train[: trial.train_size], y_train=data.y_train[: trial.train_size]
    )
    model = build_model(trial.model, data, seed=trial.seed).to(device)
    if trial.method == "AT":
        sampler = UniformSampler(data.y_train, trial.sampling_number, seed=trial.seed)
    else:
        sampler = CaseSampler(
            data.y_train,
            trial.sampling_number,
            trial.alpha,
            class_balanced=trial.class_balanced,
            temperature=UNIFORM if trial.warm_up else trial.temperature,
            log_weight=WEIGHTINGS[trial.weighting],
            seed=trial.seed,
        )
    if trial.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            model.parameters(), trial.learning_rate, momentum=0.9, weight_decay=trial.weight_decay
        )
    else:
        optimizer = torch.optim.Adam(
            model.parameters(), trial.learning_rate, weight_decay=trial.weight_decay
        )
    scheduler = None
    if trial.schedule == "cyclic":
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            trial.learning_rate,
            trial.iterations,
            pct_start=0.3,
            anneal_strategy="linear",
            cycle_momentum=False,
        )
    kind, attack = Training, trial.attack()
    if trial.crafting != "pgd":
        from .baselines import NFGSM, BatchMean, FreeTraining

        kind = FreeTraining if trial.crafting == "free" else Training
        attack = {
            "free": attack,
            "n-fgsm": NFGSM(trial.epsilon, trial.step_size or trial.epsilon),
            "batch mean": BatchMean(trial.epsilon, trial.steps),
        }[trial.crafting]
    return kind(
        model,
        data,
        sampler,
        attack,
        optimizer,
        scheduler=scheduler,
        iterations=trial.iterations,
        evaluate_every=trial.evaluate_every,
        evaluation_size=trial.evaluation_size,
        evaluation_attack=trial.judge(),
        augment=crop_and_flip if trial.augment else None,
        seed=trial.seed,
        device=device,
        precision=trial.precision,
        compile=trial.compile,
        progress=progress,
    )


def records_of(trial: Trial, training: Training):
    """The training's records, with what the trial changes on the way: a growing epsilon, the end of a warm-up."""
    attack = training.attack
    while trial.iterations is None or training.iteration < trial.iterations:
        if trial.epsilon_warm_up:
            grown = min(1.0, (training.iteration + 1) / trial.epsilon_warm_up)
            training.attack = replace(
                attack, epsilon=grown * attack.epsilon, step_size=grown * attack.step_size
            )
        if trial.warm_up and training.iteration == trial.warm_up and trial.method == "CAT":
            training.sampler.temperature = trial.temperature
        yield next(training)


def run(
    trial: Trial,
    root: str | Path = "runs",
    *,
    progress: bool = False,
    observe: Callable | None = None,
) -> Path:
    """Run a trial to its end, from its last checkpoint if there is one; the folder ``root/<trial.id>``.

    Args:
        observe: called as ``observe(training, record)`` after every iteration; what it keeps is its own affair.

    Raises: ValueError: the folder's checkpoint cannot be read; the message says what to do.
    """
    folder = Path(root) / trial.id
    if is_done(folder):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for part in folder.glob(".*"):  # what a killed process was writing
        part.unlink()
    training = build_training(trial, progress=progress)
    records, wall = [], 0.0
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        try:
            state = torch.load(checkpoint, weights_only=True, map_location=training.device)
        except Exception as error:
            raise ValueError(
                f"{checkpoint} cannot be read ({error}). Delete the folder {folder} to begin this run anew."
            ) from error
        training.load_state_dict(state["training"])
        records, wall = state["records"], state["wall_seconds"]
    started = time.perf_counter() - wall
    write_json(folder / "run.json", {"status": "running", **provenance(trial, training)})
    for record in records_of(trial, training):
        if record.accuracy is not None:
            batch = training.batch
            right = (
                (batch.logits.argmax(1) == batch.labels).double().mean().item()
            )  # before the update
            records.append({**asdict(record), "batch_accuracy": right})
            wall = time.perf_counter() - started
            state = {"training": training.state_dict(), "records": records, "wall_seconds": wall}
            # the checkpoint last: a run that is killed in between goes on from the one before, and writes both again
            write_whole(folder / "records.csv", pd.DataFrame(records).to_csv(index=False).encode())
            write_whole(checkpoint, lambda path, state=state: torch.save(state, path))
        if observe:
            observe(training, record)
    final = {}
    if trial.final_restarts:
        images, labels = training.data.test(slice(trial.final_size))
        judge = trial.judge(trial.final_restarts)
        final = {
            "accuracy": accuracy(training.model, images, labels),
            "robust_accuracy": robust_accuracy(training.model, images, labels, judge),
        }
    wall = time.perf_counter() - started
    write_json(
        folder / "run.json",
        {"status": "done", **provenance(trial, training), "wall_seconds": wall, "final": final},
    )
    return folder


def is_done(folder: Path) -> bool:
    """A run counts as done only by what its run.json says, which is written last."""
    path = Path(folder) / "run.json"
    return path.exists() and json.loads(path.read_text())["status"] == "done"


def provenance(trial: Trial, training: Training) -> dict:
    """What one must know to believe a number: settings, versions, device, revision of the code, time."""
    device = (
        torch.cuda.get_device_name(training.device)
        if training.device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    return {
        "id": trial.id,
        "trial": asdict(trial),
        "device": f"{training.device.type}: {device}",
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "catlib": catlib.__version__,
            **{name: version(name) for name in ("torch", "torchvision", "numpy")},
        },
        "revision": revision(),
        "command": " ".join(sys.argv),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def revision() -> str:
    """The commit of the code, marked when the tree differs from it; "unknown" outside a git checkout."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=10"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def read_records(root: str | Path = "runs") -> pd.DataFrame:
    """Every record of every finished run below a folder, one row each, with the run's id and settings as columns."""
    tables = []
    for path in sorted(Path(root).glob("*/run.json")):
        if is_done(path.parent):
            info = json.loads(path.read_text())
            tables.append(
                pd.read_csv(path.parent / "records.csv").assign(id=info["id"], **info["trial"])
            )
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def write_whole(path: Path, content: bytes | Callable[[Path], None]) -> None:
    """Write a file so that whoever reads it finds the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if callable(content):
            content(temporary)
        else:
            temporary.write_bytes(content)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    write_whole(path, json.dumps(content, indent=1).encode())
