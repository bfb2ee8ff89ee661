"""A run: its settings as one value, and what it leaves behind, whole or not at all.

    trial = Trial(dataset="mnist", method="CAT", epsilon=0.1, seed=3)
    folder = run(trial, "runs")          # runs/<trial.id>/: run.json, records.csv, checkpoint.pt
    table = read_records("runs")         # every record of every finished run, with its settings

A run that was killed goes on from its last checkpoint when it is called again, and a finished one
is not repeated.
"""

import hashlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import catlib
from catlib import (
    PGD,
    CaseSampler,
    Data,
    Record,
    Training,
    UniformSampler,
    accuracy,
    build_model,
    crop_and_flip,
    load_data,
    robust_accuracy,
)

from ..files import write_whole
from ..training import choose_device
from .baselines import NFGSM, BatchMean, FreeTraining
from .paths import ROOT

METHODS = ("AT", "CAT")
OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("constant", "cyclic")
CRAFTING = ("pgd", "n-fgsm", "free", "batch mean")
UNIFORM = 1e12  # a temperature at which all weights count the same


def _standardised(w: Tensor) -> Tensor:
    return (w - w.mean()) / w.std().clamp(min=1e-6)


# how a weight w of Eq. 4 becomes the logarithm of a probability, up to a constant;
# None is w / temperature
WEIGHTINGS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "power": None,
    "inverted": lambda w: -_standardised(w),
    "boundary": lambda w: -_standardised(w.abs()),
    "softplus": lambda w: nn.functional.softplus(w).clamp(min=1e-30).log(),
    "clamp": lambda w: w.clamp(min=1e-3).log(),
    "rank": lambda w: (w.argsort().argsort() + 1.0).log(),
}


@dataclass(frozen=True)
class Trial:
    """The settings of one run: plain values, so that papermill, JSON and a cluster can carry them.

    ``method`` is "AT" (UniformSampler) or "CAT" (CaseSampler). AT ignores what CAT alone uses.
    """

    dataset: str = "digits"
    model: str = "cnn"
    method: str = "CAT"
    seed: int = 0
    iterations: int | None = 200  # None goes on for ever
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
    # or a cheap rival of catlib.lab.baselines: "n-fgsm", "free" (``steps`` are its replays),
    # "batch mean"
    crafting: str = "pgd"
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
    # at the end, PGD-20 with so many restarts on the whole test set; 0 is none
    final_restarts: int = 0
    final_size: int | None = None  # the first so many test images instead
    # the machine
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        self._check_choice("method", METHODS)
        self._check_choice("weighting", tuple(WEIGHTINGS))
        self._check_choice("optimizer", OPTIMIZERS)
        self._check_choice("schedule", SCHEDULES)
        self._check_choice("crafting", CRAFTING)

    def _check_choice(self, name: str, allowed: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.")

    @property
    def id(self) -> str:
        """A readable beginning, then a digest of every setting that is not a default.

        A setting that is added later, with its default, thus leaves the ids of old runs valid.
        """
        chosen = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                chosen[field.name] = value
        digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]
        beginning = f"{self.dataset}-{self.model}-{self.method}-k{self.sampling_number}"
        return f"{beginning}-s{self.seed}-{digest}"

    def attack(self) -> PGD:
        """The PGD of these settings; what training crafts with is :func:`training_attack`."""
        return PGD(
            self.epsilon,
            self.step_size,
            self.steps,
            self.restarts,
            rule=self.rule,
            norm=self.norm,
            batch_norm=self.batch_norm,
        )

    def judge(self, restarts: int = 1) -> PGD | BatchMean:
        """The attack of the evaluations."""
        epsilon = self.epsilon if self.evaluation_epsilon is None else self.evaluation_epsilon
        if self.evaluation_rule == "batch mean":
            return BatchMean(epsilon, self.evaluation_steps)
        return PGD(
            epsilon,
            steps=self.evaluation_steps,
            restarts=restarts,
            rule=self.evaluation_rule,
            norm=self.norm,
        )


# ---- from a trial to its Training ----


def build_training(trial: Trial, *, progress: bool = False) -> Training:
    """The Training that a trial describes, before its first iteration."""
    device = choose_device(trial.device)
    data = _first_images(load_data(trial.dataset).to(device), trial.train_size)
    model = build_model(trial.model, data, seed=trial.seed).to(device)
    optimizer = _build_optimizer(trial, model)
    kind = FreeTraining if trial.crafting == "free" else Training
    return kind(
        model,
        data,
        _build_sampler(trial, data.y_train),
        training_attack(trial),
        optimizer,
        scheduler=_build_scheduler(trial, optimizer),
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


def training_attack(trial: Trial) -> PGD | NFGSM | BatchMean:
    """The attack that a trial trains with: its PGD, or the rival that ``crafting`` names."""
    if trial.crafting == "n-fgsm":
        return NFGSM(trial.epsilon, trial.step_size or trial.epsilon)
    if trial.crafting == "batch mean":
        return BatchMean(trial.epsilon, trial.steps)
    return replace(trial.attack(), compile=trial.compile)


def _first_images(data: Data, train_size: int | None) -> Data:
    return replace(data, x_train=data.x_train[:train_size], y_train=data.y_train[:train_size])


def _build_sampler(trial: Trial, labels: Tensor) -> UniformSampler | CaseSampler:
    if trial.method == "AT":
        return UniformSampler(labels, trial.sampling_number, seed=trial.seed)
    return CaseSampler(
        labels,
        trial.sampling_number,
        trial.alpha,
        class_balanced=trial.class_balanced,
        temperature=UNIFORM if trial.warm_up else trial.temperature,
        log_weight=WEIGHTINGS[trial.weighting],
        seed=trial.seed,
    )


def _build_optimizer(trial: Trial, model: nn.Module) -> torch.optim.Optimizer:
    if trial.optimizer == "adam":
        return torch.optim.Adam(
            model.parameters(),
            lr=trial.learning_rate,
            weight_decay=trial.weight_decay,
        )
    return torch.optim.SGD(
        model.parameters(),
        lr=trial.learning_rate,
        momentum=0.9,
        weight_decay=trial.weight_decay,
    )


def _build_scheduler(
    trial: Trial, optimizer: torch.optim.Optimizer
) -> torch.optim.lr_scheduler.LRScheduler | None:
    if trial.schedule == "constant":
        return None
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        trial.learning_rate,
        trial.iterations,
        pct_start=0.3,
        anneal_strategy="linear",
        cycle_momentum=False,
    )


def records_of(trial: Trial, training: Training) -> Iterator[Record]:
    """The training's records, with what the trial changes on the way.

    That is an epsilon that grows, and the end of a warm-up of the sampler.
    """
    attack: Any = training.attack
    while trial.iterations is None or training.iteration < trial.iterations:
        if trial.epsilon_warm_up:
            grown = min(1.0, (training.iteration + 1) / trial.epsilon_warm_up)
            training.attack = replace(
                attack, epsilon=grown * attack.epsilon, step_size=grown * attack.step_size
            )
        if trial.warm_up and training.iteration == trial.warm_up and trial.method == "CAT":
            training.sampler.temperature = trial.temperature
        yield next(training)


# ---- a run on disk ----


def run(
    trial: Trial,
    root: str | Path = "runs",
    *,
    progress: bool = False,
    observe: Callable[[Training, Record], object] | None = None,
) -> Path:
    """Run a trial to its end, from its last checkpoint if there is one.

    Args:
        trial: the settings.
        root: the folder of all runs; this one's is ``root/<trial.id>``.
        progress: show a tqdm bar.
        observe: called as ``observe(training, record)`` after every iteration. What it stores
            itself is not part of the checkpoint.

    Returns:
        The run's folder.

    Raises:
        ValueError: the folder's checkpoint cannot be read; the message says what to do.
    """
    folder = Path(root) / trial.id
    if is_done(folder):
        return folder
    _open_folder(folder)
    training = build_training(trial, progress=progress)
    history = _resume(folder, training)
    write_json(folder / "run.json", {"status": "running", **provenance(trial, training)})
    for record in records_of(trial, training):
        if record.accuracy is not None:
            history.add(record, training)
            history.save(folder, training)
        if observe is not None:
            observe(training, record)
    _finish(folder, trial, training, history)
    return folder


class _History:
    """What a run has so far besides its Training: the evaluated records and the wall-clock time."""

    def __init__(self, records: list[dict[str, Any]], wall_seconds: float):
        self.records = records
        self._started = time.perf_counter() - wall_seconds

    @property
    def wall_seconds(self) -> float:
        """Seconds since the run began, all its stretches together."""
        return time.perf_counter() - self._started

    def add(self, record: Record, training: Training) -> None:
        batch = training.batch
        assert batch is not None, "a record comes with its batch"
        right = batch.logits.argmax(1) == batch.labels  # before the update
        batch_accuracy = right.double().mean().item()
        self.records.append({**asdict(record), "batch_accuracy": batch_accuracy})

    def save(self, folder: Path, training: Training) -> None:
        """Write records.csv and checkpoint.pt.

        The checkpoint comes last: a run that is killed between the two files goes on from the
        checkpoint before, and writes both again.
        """
        state = {
            "training": training.state_dict(),
            "records": self.records,
            "wall_seconds": self.wall_seconds,
        }

        def save_state(path: Path) -> None:
            torch.save(state, path)

        table = pd.DataFrame(self.records)
        write_whole(folder / "records.csv", table.to_csv(index=False).encode())
        write_whole(folder / "checkpoint.pt", save_state)


def _open_folder(folder: Path) -> None:
    """Make the folder, and remove what a killed process was writing."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in folder.glob(".*"):
        part.unlink()


def _resume(folder: Path, training: Training) -> _History:
    """Load the folder's checkpoint into the training, if there is one."""
    checkpoint = folder / "checkpoint.pt"
    if not checkpoint.exists():
        return _History(records=[], wall_seconds=0.0)
    try:
        state = torch.load(checkpoint, weights_only=True, map_location=training.device)
    except Exception as error:  # a damaged file can raise nearly anything
        raise ValueError(
            f"{checkpoint} cannot be read ({error}). "
            f"Delete the folder {folder} to begin this run anew."
        ) from error
    training.load_state_dict(state["training"])
    return _History(state["records"], state["wall_seconds"])


def _finish(folder: Path, trial: Trial, training: Training, history: _History) -> None:
    """Judge the final model if the trial asks for it, and write that the run is done."""
    final = {}
    if trial.final_restarts:
        images, labels = training.data.test(slice(trial.final_size))
        judge = trial.judge(trial.final_restarts)
        final["accuracy"] = accuracy(training.model, images, labels)
        final["robust_accuracy"] = robust_accuracy(training.model, images, labels, judge)
    info = {
        "status": "done",
        **provenance(trial, training),
        "wall_seconds": history.wall_seconds,
        "final": final,
    }
    write_json(folder / "run.json", info)


def is_done(folder: str | Path) -> bool:
    """Whether a run is finished. Its run.json alone says so, and is written last."""
    path = Path(folder) / "run.json"
    return path.exists() and json.loads(path.read_text())["status"] == "done"


def provenance(trial: Trial, training: Training) -> dict[str, Any]:
    """What one must know to believe a number: settings, versions, device, code revision, time."""
    versions = {"python": platform.python_version(), "catlib": catlib.__version__}
    for name in ("torch", "torchvision", "numpy"):
        versions[name] = version(name)
    return {
        "id": trial.id,
        "trial": asdict(trial),
        "device": f"{training.device.type}: {_device_name(training.device)}",
        "threads": torch.get_num_threads(),
        "versions": versions,
        "revision": revision(),
        "command": " ".join(sys.argv),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def revision() -> str:
    """The commit of the code, marked "-dirty" when files differ; "unknown" outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()


def read_records(root: str | Path = "runs") -> pd.DataFrame:
    """Every record of every finished run in a folder, with the run's id and settings as columns."""
    tables = []
    for path in sorted(Path(root).glob("*/run.json")):
        if not is_done(path.parent):
            continue
        info = json.loads(path.read_text())
        records = pd.read_csv(path.parent / "records.csv")
        tables.append(records.assign(id=info["id"], **info["trial"]))
    if not tables:
        return pd.DataFrame()
    return pd.concat(tables, ignore_index=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=1).encode())
