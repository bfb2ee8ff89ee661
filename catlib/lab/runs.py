"""A run: its settings as one value, and what it leaves behind, whole or not at all.

    trial = Trial(dataset="mnist", method="CAT", epsilon=0.1, seed=3)
    folder = run(trial, "runs")          # runs/<trial.id>/: run.json, records.csv, checkpoint.pt
    table = read_records("runs")         # every record of every finished run, with its settings

A run that was killed goes on from its last checkpoint when it is called again, and a finished one
is not repeated, as long as the code is the same that began it.
"""

import hashlib
import io
import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
import types
import typing
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

import catlib
from catlib import (
    PGD,
    CaseSampler,
    CropAndFlip,
    Data,
    PerturbationMemory,
    Record,
    Training,
    UniformSampler,
    accuracy,
    build_model,
    load_data,
)

from ..attacks import check_radius
from ..checks import check_count, check_evaluations
from ..collapse import Guard, GuardedRecord
from ..data import SUBSETS, find_data, known_file, subset
from ..evaluation import judging
from ..files import remove_leftovers, write_whole
from ..interrupts import deferred_interrupts
from ..kernels.step import begin_compiled_run
from ..models import check_width
from ..ranks import find_ranks
from ..readings import by_rank, near_boundary, standardised, steps_near_boundary
from ..training import Batch, adversarial_cross_entropy, choose_device
from .baselines import NFGSM, BatchMean, FreeTraining
from .losses import MART, TRADES, KLAttack
from .paths import ROOT
from .sources import code_of, differing

METHODS = ("AT", "CAT")
OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("constant", "cyclic")
CRAFTING = ("pgd", "n-fgsm", "free", "batch mean", "kl")
# the settings that only crafting "pgd" follows, and what the others do instead
PGD_ALONE = {"norm": "linf", "restarts": 1, "rule": "sign", "batch_norm": "eval"}
WATCHED = ("pgd", "n-fgsm", "free", "kl")  # that a guard can make milder
LOSSES = ("cross-entropy", "trades", "mart")
MEMORY_BITS = (0, 8, 16)
JUDGES = ("sign", "gradient", "batch mean")
LEAST = {  # the smallest value of the settings that are counts
    "seed": 0,
    "iterations": 1,
    "sampling_number": 1,
    "train_size": 1,
    "validation_size": 0,
    "warm_up": 0,
    "steps": 0,
    "restarts": 1,
    "epsilon_warm_up": 0,
    "evaluate_every": 0,
    "evaluate_first": 0,
    "evaluation_size": 1,
    "evaluation_steps": 0,
    "recalibrate": 0,
    "final_restarts": 0,
    "final_size": 1,
}
IF_CODE_CHANGED = ("refuse", "repeat", "reuse")
# a checkpoint of a ResNet-18 is 90 MB: one after every evaluation could take as long as training
CHECKPOINT_SECONDS = 60.0
REPLACED = ".replaced-"  # in the name of a folder: a run that was put aside
UNIFORM = 1e12  # a temperature at which all weights count the same


# how a weight w of Eq. 4 becomes the logarithm of a probability, up to a constant;
# None is w / temperature
WEIGHTINGS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "power": None,
    "inverted": lambda w: -standardised(w),
    "boundary": near_boundary,
    "softplus": lambda w: nn.functional.softplus(w).clamp(min=1e-30).log(),
    "clamp": lambda w: w.clamp(min=1e-3).log(),
    "rank": by_rank,
}
# how many steps of the attack an example gets by its weight
BUDGETS = ("equal", "boundary")


@dataclass(frozen=True)
class Trial:
    """The settings of one run: plain values, so that papermill, JSON and a cluster can carry them.

    ``method`` is "AT" (UniformSampler) or "CAT" (CaseSampler). AT ignores what CAT alone uses.

    Raises: ValueError, TypeError: a setting that no run could use. The datasets, the model and the
        sampler check the rest when they are built.
    """

    dataset: str = "digits"  # "mnist", "fashion_mnist", "cifar10", or a path to your own data
    model: str = "cnn"  # "resnet18", or "module:function" for a model of your own
    width: int | None = None  # channels of a resnet18; None is 64, the published network
    method: str = "CAT"  # or "AT", with uniform draws
    seed: int = 0  # of the initial weights, the draws and the random starts
    iterations: int | None = 200  # updates of the model; None goes on for ever
    sampling_number: int = 128  # images that an iteration draws and attacks
    train_size: int | None = None  # train on the first so many images alone; None is all
    # so many of these are held out of training, spread over them, and evaluations on the way use
    # them in place of test images; the judgement at the end is on test images all the same
    validation_size: int = 0
    # -- the sampler of CAT
    alpha: float = 0.5  # memory of Eq. 4: the share of its old value in a new weight
    class_balanced: bool = True  # draw as many of each class
    temperature: float | str = "auto"  # divides the weights; a larger one draws more evenly
    # how a weight becomes the probability of a draw: "power", "inverted", "boundary", "softplus",
    # "clamp" or "rank"
    weighting: str = "power"
    warm_up: int = 0  # iterations of uniform draws before weights count
    # -- the attack in training
    epsilon: float = 0.1  # radius, for images in [0, 1]; that of the evaluation, too
    step_size: float | None = None  # of the attack; None is 2.5 epsilon / steps
    steps: int = 10  # of the attack
    restarts: int = 1  # random starts of the attack, of which the one with the largest loss counts
    rule: str = "sign"  # or "gradient": a step is the gradient itself, as Eq. 2 prints it
    norm: str = "linf"  # or "l2": what epsilon measures
    batch_norm: str = "eval"  # statistics that the attack uses: stored, or of the batch ("train")
    epsilon_warm_up: int = 0  # iterations over which epsilon grows from 0
    # bits a pixel in which the last perturbation of every image is remembered, for the next attack
    # on it to begin there: 8 or 16; 0 remembers nothing
    memory_bits: int = 0
    # "boundary": an example gets up to twice ``steps``, the more the smaller |w| is in its batch,
    # and the farthest none; on average ``steps``
    budget: str = "equal"
    # or a cheap rival of catlib.lab.baselines: "n-fgsm", "free" (``steps`` are its replays),
    # "batch mean"; or "kl", the attack of TRADES (catlib.lab.losses)
    crafting: str = "pgd"
    # of "n-fgsm": the start is uniform in the ball of so many epsilon; None is 2
    noise: float | None = None
    # look for catastrophic overfitting on the way, and undo it (catlib.collapse)
    guard: bool = False
    # -- the update
    # or "trades" and "mart" (catlib.lab.losses), which use beta. TRADES as published is
    # loss "trades" with crafting "kl"
    loss: str = "cross-entropy"
    beta: float = 6.0  # weight of the robust part of the losses "trades" and "mart"
    optimizer: str = "sgd"  # or "adam"
    learning_rate: float = 0.05  # of the optimizer
    weight_decay: float = 0.0  # of the optimizer
    schedule: str = "constant"  # or "cyclic": up to the learning rate and down to 0
    augment: bool = False  # shift and mirror the training images at random
    # -- the evaluation
    evaluate_every: int = 10  # iterations; 0 is never
    evaluate_first: int = 0  # and after each of the first so many iterations
    evaluation_size: int = 500  # test images
    evaluation_subset: str = "first"  # which test images: the first so many, or "spread" over them
    # training images for the statistics of batch norm in an evaluation; 0 keeps the model's own
    recalibrate: int = 0
    evaluation_steps: int = 20  # of the attack of the evaluation
    evaluation_epsilon: float | None = None  # None is that of training
    evaluation_rule: str = "sign"  # a rule of PGD, or "batch mean"
    # at the end, PGD-20 with so many restarts on the whole test set; 0 is none
    final_restarts: int = 0
    final_size: int | None = None  # so many test images instead, chosen in the same way
    # at the end as well, of a reading of the paper whose attack may do little: the robust accuracy
    # under signed PGD-20 at this epsilon, and how far the evaluation's attack moves a pixel
    audit_epsilon: float | None = None
    # -- the machine
    device: str = "auto"  # "cpu" or "cuda"; "auto" is a GPU where there is one
    precision: str = "auto"  # or "float32", "bfloat16"; "auto" is bfloat16 on a GPU alone
    compile: bool = False  # run each step as one compiled graph

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.generic):  # a number of NumPy's is taken as Python's
                value = value.item()
            _check_type(field.name, value, field.type)
            if type(value) is int and _is_real(field.type):
                value = float(value)  # 5 and 5.0 are one setting, and give one id
            object.__setattr__(self, field.name, value)
        for name, least in LEAST.items():
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), at_least=least)
        self._check_choice("method", METHODS)
        self._check_choice("weighting", tuple(WEIGHTINGS))
        self._check_choice("budget", BUDGETS)
        self._check_choice("optimizer", OPTIMIZERS)
        self._check_choice("schedule", SCHEDULES)
        self._check_choice("crafting", CRAFTING)
        self._check_choice("loss", LOSSES)
        self._check_choice("evaluation_subset", SUBSETS)
        self._check_choice("evaluation_rule", JUDGES)
        if self.memory_bits not in MEMORY_BITS:
            raise ValueError(f"memory_bits is {self.memory_bits}; it must be 0, 8 or 16.")
        if self.memory_bits and self.crafting != "pgd":
            raise ValueError(
                f"memory_bits is {self.memory_bits} with crafting {self.crafting!r}; only 'pgd' "
                "can begin at what is remembered."
            )
        if self.budget != "equal":
            self._check_budget()
        for name in ("learning_rate", "weight_decay", "beta"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be a finite number of at least 0.")
        if self.crafting == "free" and self.steps == 0:
            raise ValueError("steps is 0; with crafting 'free' it must be at least 1, the replays.")
        if self.noise is not None:
            self._check_noise(self.noise)
        if self.guard:
            self._check_guard()
        if self.train_size is not None and self.train_size <= self.validation_size:
            raise ValueError(
                f"validation_size is {self.validation_size} and train_size is {self.train_size}; "
                "images must be left to train on: hold out fewer."
            )
        check_width(self.model, self.width)
        check_evaluations(self.evaluate_every, self.evaluate_first)
        if self.crafting != "pgd":
            self._check_crafting()
        if self.evaluation_rule == "batch mean" and self.norm != "linf":
            raise ValueError(
                f"norm is {self.norm!r} with evaluation_rule 'batch mean', which knows 'linf' only."
            )
        if self.schedule == "cyclic" and self.iterations is None:
            raise ValueError("iterations is None; a cyclic schedule must know where it ends.")
        if self.audit_epsilon is not None and not self.final_restarts:
            raise ValueError(
                f"audit_epsilon is {self.audit_epsilon} and final_restarts is 0; the audit is part "
                "of the judgement at the end: give final_restarts of at least 1."
            )
        self.attack()  # these check the settings of PGD
        self.judge(max(1, self.final_restarts))
        self.auditor()
        for name in ("epsilon", "evaluation_epsilon", "audit_epsilon"):
            if getattr(self, name) is not None:
                check_radius(name, getattr(self, name), self.norm)

    def _check_choice(self, name: str, allowed: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.")

    def _check_crafting(self) -> None:
        """Raise ValueError for a setting that PGD would follow and this crafting would ignore."""
        alone = dict(PGD_ALONE)
        if self.crafting == "batch mean":
            alone["step_size"] = None  # its step is the gradient
        for name, only in alone.items():
            value = getattr(self, name)
            if value != only:
                raise ValueError(
                    f"{name} is {value!r} with crafting {self.crafting!r}, which has {only!r} "
                    f"only. Leave {name} out, or use crafting 'pgd'."
                )

    def _check_budget(self) -> None:
        if self.method == "AT":
            raise ValueError(
                f"budget is {self.budget!r} with method 'AT', which has no weights. Uniform draws "
                f"with weights are method 'CAT' with temperature=1e12 and class_balanced=False."
            )
        if self.crafting != "pgd":
            raise ValueError(f"budget is {self.budget!r}; only crafting 'pgd' can follow it.")
        if self.steps == 0:
            raise ValueError(f"steps is 0; with budget {self.budget!r} it must be at least 1.")

    def _check_noise(self, noise: float) -> None:
        if self.crafting != "n-fgsm":
            raise ValueError(
                f"noise is {noise} with crafting {self.crafting!r}; only 'n-fgsm' has it. "
                "Leave it out (None)."
            )
        if not 0 <= noise < float("inf"):
            raise ValueError(f"noise is {noise}; it must be a finite number of at least 0.")

    def _check_guard(self) -> None:
        if self.crafting not in WATCHED:
            raise ValueError(
                f"guard is True with crafting {self.crafting!r}, which has no step that a guard "
                f"could make smaller; it watches {', '.join(WATCHED)}."
            )
        if self.steps == 0 and self.crafting != "n-fgsm":
            raise ValueError(
                "guard is True and steps is 0: noise alone has no step that a guard could make "
                "smaller. Give steps of at least 1, or leave the guard out."
            )

    @property
    def id(self) -> str:
        """A readable beginning, then a digest of every setting that is not a default.

        A setting that is added later, with its default, thus leaves the ids of old runs valid. The
        id is the name of a folder, so it has letters, digits, "-" and "_" only.
        """
        chosen = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                chosen[field.name] = value
        digest = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]
        names = f"{_as_file_name(self.dataset)}-{_as_file_name(self.model)}"
        if self.width is not None:
            names += f"-w{self.width}"
        beginning = f"{names}-{self.method}-k{self.sampling_number}"
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

    def auditor(self) -> PGD | None:
        """PGD-20 with signed steps at full strength, which the audit judges by, too."""
        if self.audit_epsilon is None:
            return None
        return PGD(
            self.audit_epsilon, steps=20, restarts=max(1, self.final_restarts), norm=self.norm
        )


def _check_type(name: str, value: Any, annotation: Any) -> None:
    allowed = typing.get_args(annotation) or (annotation,)
    kind = type(value)
    if kind in allowed or (kind is int and float in allowed):
        return
    words = " or ".join("None" if one is types.NoneType else one.__name__ for one in allowed)
    raise TypeError(f"{name} is {value!r}, of type {kind.__name__}; it must be {words}.")


def _is_real(annotation: Any) -> bool:
    """Whether a setting of this type is a real number, for which whole numbers are allowed too."""
    allowed = typing.get_args(annotation) or (annotation,)
    return float in allowed and int not in allowed


def _as_file_name(name: str) -> str:
    """The end of a name, with "-" for whatever could be special in the name of a folder."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name)[-40:].strip("-")


def passes_a_draw(trial: Trial) -> int:
    """How often an image that was drawn goes through the model, in the attack and in the update.

    PGD-10 has 11: ten steps and the update. With a ``budget`` it is the mean over a batch. What a
    guard spends, at most 3 %, comes on top.
    """
    update = 1 if trial.loss == "cross-entropy" else 2  # the others look at the clean image, too
    if trial.crafting == "free":
        return update
    if trial.crafting == "n-fgsm":
        return 1 + update
    if trial.crafting == "kl":
        return trial.steps + 1 + update
    scoring = 1 if trial.restarts > 1 else 0
    return (trial.steps + scoring) * trial.restarts + update


# ---- from a trial to its Training ----


def build_training(trial: Trial, *, progress: bool = False) -> Training:
    """The Training that a trial describes, before its first iteration.

    Args:
        trial: the settings.
        progress: show a tqdm bar.
    """
    device = choose_device(trial.device)
    data = _first_images(_data_on(device, trial.dataset), trial.train_size)
    if trial.validation_size:
        data = _with_validation(data, trial)
    model = build_model(trial.model, data, seed=trial.seed, width=trial.width).to(device)
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
        evaluate_first=trial.evaluate_first,
        evaluation_size=trial.evaluation_size,
        evaluation_subset=trial.evaluation_subset,
        recalibrate=trial.recalibrate,
        evaluation_attack=trial.judge(),
        augment=CropAndFlip() if trial.augment else None,
        loss=_build_loss(trial),
        memory=_build_memory(trial, data),
        budget=_build_budget(trial),
        seed=trial.seed,
        device=device,
        precision=trial.precision,
        compile=trial.compile,
        progress=progress,
    )


# the data of the last trial, which the next one in this process will mostly want, too
_last_data: dict[tuple, Data] = {}


def _data_on(device: torch.device, dataset: str) -> Data:
    """The data of this name on a device, read once as long as their file stays as it is."""
    path = find_data(dataset)
    if path is None and dataset != "digits":
        path = known_file(dataset)
    if path is not None and not path.is_file():
        return load_data(dataset).to(device)  # a folder of images, or a file to be downloaded first
    written = (path, path.stat().st_mtime_ns, path.stat().st_size) if path is not None else None
    key = (dataset, written, device)
    if key not in _last_data:
        _last_data.clear()
        _last_data[key] = load_data(dataset).to(device)
    return _last_data[key]


def training_attack(trial: Trial) -> PGD | NFGSM | BatchMean | KLAttack:
    """The attack that a trial trains with: its PGD, or what ``crafting`` names."""
    if trial.crafting == "n-fgsm":
        attack = NFGSM(trial.epsilon, _step_of_epsilon(trial))
        return attack if trial.noise is None else replace(attack, noise=trial.noise)
    if trial.crafting == "free":
        return PGD(trial.epsilon, _step_of_epsilon(trial), trial.steps)
    if trial.crafting == "batch mean":
        return BatchMean(trial.epsilon, trial.steps)
    if trial.crafting == "kl":
        return KLAttack(trial.epsilon, trial.attack().step_size, trial.steps)
    return replace(trial.attack(), compile=trial.compile)


def _step_of_epsilon(trial: Trial) -> float:
    """The step size of N-FGSM and of free adversarial training: as published, epsilon."""
    return trial.epsilon if trial.step_size is None else trial.step_size


def _first_images(data: Data, train_size: int | None) -> Data:
    return replace(data, x_train=data.x_train[:train_size], y_train=data.y_train[:train_size])


def _with_validation(data: Data, trial: Trial) -> Data:
    """The data with some training images, held out of training, in the place of the test images.

    Raises: ValueError: too few images, or none of a class, would be left to train on.
    """
    n = len(data.y_train)
    left = n - trial.validation_size
    if left < trial.sampling_number:
        raise ValueError(
            f"validation_size is {trial.validation_size} of {n} training images, which leaves "
            f"{max(0, left)}; at least {trial.sampling_number} must be left, as many as an "
            "iteration draws (sampling_number). Hold out fewer."
        )
    held = torch.zeros(n, dtype=torch.bool, device=data.y_train.device)
    held[subset(data.y_train, trial.validation_size, "spread")] = True
    lost = set(data.y_train.tolist()) - set(data.y_train[~held].tolist())
    if lost:
        names = ", ".join(data.classes[label] for label in sorted(lost))
        raise ValueError(
            f"validation_size is {trial.validation_size} of {n} training images, which leaves none "
            f"of the class {names}. Hold out fewer, or add images."
        )
    return replace(
        data,
        x_train=data.x_train[~held],
        y_train=data.y_train[~held],
        x_test=data.x_train[held],
        y_test=data.y_train[held],
    )


def judged_images(trial: Trial, training: Training, count: int | None) -> tuple[Tensor, Tensor]:
    """So many test images and their labels for a judgement at the end; None is all.

    They are test images also where the evaluations on the way used held-out training images.

    Args:
        trial: the settings, which say what images those are.
        training: what :func:`build_training` made of them.
        count: how many, chosen by ``evaluation_subset``.
    """
    if not trial.validation_size:
        return training.test_images(count)
    data = _data_on(training.device, trial.dataset)
    return data.test(subset(data.y_test, count, trial.evaluation_subset))


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


def _build_loss(trial: Trial) -> Callable[..., tuple[Tensor, Tensor]]:
    if trial.loss == "trades":
        return TRADES(trial.beta)
    if trial.loss == "mart":
        return MART(trial.beta)
    return adversarial_cross_entropy


def _build_memory(trial: Trial, data: Data) -> PerturbationMemory | None:
    if not trial.memory_bits:
        return None
    n, *shape = data.x_train.shape
    # while epsilon grows, it stays below the trial's
    return PerturbationMemory(
        n, tuple(shape), trial.epsilon, bits=trial.memory_bits, device=data.x_train.device
    )


def _build_budget(trial: Trial) -> Callable[[Tensor], Tensor] | None:
    if trial.budget == "equal":
        return None
    return partial(steps_near_boundary, most=2 * trial.steps)


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


def build_guard(trial: Trial, training: Training) -> Guard | None:
    """The guard that a trial asks for, around its training; None where it asks for none."""
    return Guard(training) if trial.guard else None


def records_of(
    trial: Trial, training: Training, guard: Guard | None = None
) -> Iterator[Record | GuardedRecord]:
    """The training's records, with what the trial changes on the way.

    That is an epsilon that grows, the end of a warm-up of the sampler, and what a guard undoes.
    After an interrupt or an error call it again with the same training and guard to go on.

    Args:
        trial: the settings.
        training: what :func:`build_training` made of them.
        guard: what ``build_guard`` made of both; None makes one here where the trial asks for it.
    """
    attack = training_attack(trial)
    if guard is None:
        guard = build_guard(trial, training)
    while True:
        if trial.epsilon_warm_up:
            coming = training if guard is None else guard
            share = min(1.0, coming.next_iteration / trial.epsilon_warm_up)
            present = _at_share_of_epsilon(attack, share)
            training.attack = present if guard is None else guard.milder(present)
        if trial.warm_up and training.iteration == trial.warm_up and trial.method == "CAT":
            training.sampler.temperature = trial.temperature
        record = next(training, None) if guard is None else guard.next_record()
        if record is None:
            return
        yield record


def _at_share_of_epsilon(
    attack: PGD | NFGSM | BatchMean | KLAttack, share: float
) -> PGD | NFGSM | BatchMean | KLAttack:
    epsilon = share * attack.epsilon
    if isinstance(attack, BatchMean):  # which has no step size
        return replace(attack, epsilon=epsilon)
    assert attack.step_size is not None, "a trial's attack has a step size"
    return replace(attack, epsilon=epsilon, step_size=share * attack.step_size)


# ---- a run on disk ----


def run(
    trial: Trial,
    root: str | Path = "runs",
    *,
    progress: bool = False,
    observe: Callable[[Training, Record], object] | None = None,
    if_code_changed: str = "refuse",
    wait: float | None = None,
) -> Path:
    """Run a trial to its end, from its last checkpoint if there is one.

    A checkpoint is written after an evaluation if the last one is at least
    :data:`CHECKPOINT_SECONDS` old, when Ctrl-C or an error of ``observe`` stops the run, and at the
    end. A run that was killed drops the records after its last checkpoint, and makes them again.

    Args:
        trial: the settings. All is checked before anything is written.
        root: the folder of all runs; this one's is ``root/<trial.id>``.
        progress: show a tqdm bar.
        observe: called as ``observe(training, record)`` after every iteration. What it stores
            itself is not part of the checkpoint; a run that was killed shows it the records since
            the last checkpoint once more.
        if_code_changed: what to do with a run, finished or not, that other code of catlib (or of
            the user's model) began: "refuse" raises a ValueError that names the files, "repeat"
            puts its folder aside and runs the trial anew, "reuse" takes it as it is.
        wait: seconds to wait while another process works on this run; None waits to its end. A
            warning says who it is.

    Returns:
        The run's folder.

    Raises:
        ValueError, TypeError: a setting that cannot be used; a run of other code, see above; a
            file of the run that cannot be read, which the message names, with what to do; several
            ranks, as under ``torchrun``, which can train what :func:`build_training` returns.
        TimeoutError: another process still works on this run.
        FloatingPointError: training diverged; the last checkpoint from before stays.
    """
    if if_code_changed not in IF_CODE_CHANGED:
        raise ValueError(
            f"if_code_changed is {if_code_changed!r}; "
            f"it must be one of {', '.join(IF_CODE_CHANGED)}."
        )
    ranks = find_ranks("auto").count
    if ranks > 1:
        raise ValueError(
            f"run is for one process, and here are {ranks} ranks; take build_training(trial), "
            "and save its state as docs/ranks.md shows."
        )
    folder = Path(root) / trial.id
    if _is_usable(folder, trial, if_code_changed):
        return folder
    if trial.compile and begin_compiled_run():
        _compiled_kinds.clear()
    training = build_training(trial, progress=progress)
    guard = build_guard(trial, training)
    with only_one_process(folder, wait):
        # another process may have finished it in the meantime
        if _is_usable(folder, trial, if_code_changed):
            return folder
        if is_done(folder):
            put_aside(folder)
        history = _new_or_resumed(folder, trial, training, guard, if_code_changed)
        write_json(folder / "run.json", {"status": "running", **history.origin(trial, training)})
        if trial.compile:
            _compile_before_the_clock(trial)
        _train(folder, trial, training, history, observe)
        _finish(folder, trial, training, history)
    return folder


# the kinds of training that this process has compiled
_compiled_kinds: set[tuple] = set()


def _compile_before_the_clock(trial: Trial) -> None:
    """Let torch compile for a trial, along a training that is thrown away, if it has not yet.

    It takes a minute, which would otherwise count as the first run's training time.
    """
    changing = ("method", "seed", "iterations", "alpha", "temperature", "weighting", "epsilon")
    settings = asdict(trial)
    kind = tuple(value for name, value in settings.items() if name not in changing)
    if kind in _compiled_kinds:
        return
    training = build_training(replace(trial, evaluate_every=0, evaluate_first=0))
    for _ in range(3):  # on a GPU the second captures a CUDA graph, the third replays it
        next(training, None)
    _compiled_kinds.add(kind)


def _train(
    folder: Path,
    trial: Trial,
    training: Training,
    history: "_History",
    observe: Callable[[Training, Record], object] | None,
) -> None:
    """Train to the last iteration, and write records and checkpoints on the way."""
    observing = False
    # Ctrl-C waits for a moment at which the training and its records agree
    with deferred_interrupts() as interrupts:
        try:
            for record in records_of(trial, training, history.guard):
                if is_undone(record, training):
                    history.go_back(training)
                    history.write_records(folder)
                else:
                    history.watch(record, training)
                    if record.accuracy is not None:
                        history.add(record, training)
                        history.write_records(folder)
                    history.keep_if_good(record)
                if observe is not None:
                    observing = True
                    with interrupts.allowed():
                        observe(training, record)
                    observing = False
                # after the observer: a run that is killed here shows it this record once more
                if record.accuracy is not None and history.checkpoint_is_due():
                    history.save_checkpoint(folder, trial, training)
                interrupts.poll()
        except BaseException as error:
            # after another error, as of a step of the optimizer, the training may be half done
            stopped = observing or isinstance(error, KeyboardInterrupt)
            # nobody goes on from a training that diverged: the last good checkpoint stays
            if stopped and not training.diverged_at():
                history.save_checkpoint(folder, trial, training)
            raise


def is_undone(record: Record, training: Training) -> bool:
    """Whether a guard has undone the iteration of this record, the training's last one."""
    return record.iteration != training.iteration


def save_if_best(training: Training, record: Record, path: Path) -> None:
    """Save the weights if their robust accuracy is the best so far, and no guard has undone them.

    Args:
        training: after the iteration of the record.
        record: of an iteration that was evaluated; another one is passed over.
        path: of the file, which has the weights ("model"), their "robust_accuracy" and "iteration".
    """
    if record.robust_accuracy is None or is_undone(record, training):
        return
    with deferred_interrupts():  # the checkpoint that Ctrl-C writes says that this record was seen
        best = -1.0
        if path.exists():
            best = torch.load(path, weights_only=True)["robust_accuracy"]
        if record.robust_accuracy > best:
            state = {
                "model": training.model.state_dict(),
                "robust_accuracy": record.robust_accuracy,
                "iteration": record.iteration,
            }
            write_whole(path, lambda temporary: torch.save(state, temporary))


def _is_usable(folder: Path, trial: Trial, if_code_changed: str) -> bool:
    """Whether the folder has the trial's finished run, of this code or of code that is accepted.

    The same choice is made for the runs of a batch in :func:`catlib.lab.batch.units.to_do`, and for
    those of the study in :func:`catlib.lab.study.work.settle_other_code`.

    Raises: ValueError: it is of other code, and is to be refused.
    """
    if not is_done(folder):
        return False
    changed = _changed_code(_stretches_of(read_run(folder)), trial.model, trial.dataset)
    if changed and if_code_changed == "refuse":
        raise ValueError(_other_code(folder, "finished", changed))
    return not changed or if_code_changed == "reuse"


def _stretches_of(info: dict[str, Any]) -> list[dict[str, Any]]:
    """The stretches that a run.json lists; without a list it is of one stretch itself."""
    return info.get("stretches", [info])


def _changed_code(stretches: list[dict[str, Any]], model: str, dataset: str) -> list[str]:
    """Names of the files, of code or data, that differ now from those of any stretch of a run."""
    now = code_of(model, dataset)
    changed = set()
    for stretch in stretches:
        if "code" not in stretch:
            return ["perhaps all files, as the run does not say what code it is of"]
        changed.update(differing(stretch["code"], now))
    return sorted(changed)


def _other_code(folder: Path, state: str, changed: list[str]) -> str:
    return (
        f"{folder} has a run that was {state} by other code, or on other data; what differs: "
        f"{', '.join(changed)}. "
        "Delete the folder or choose another root to run it anew; or use if_code_changed='repeat' "
        "(put it aside and run anew) or 'reuse' (take it as it is), in a shell --if-code-changed."
    )


def changed_code(folder: str | Path) -> list[str]:
    """Names of the source files that differ now from those that a run is of.

    Raises: ValueError: the run.json cannot be read.
    """
    info = read_run(folder)
    return _changed_code(_stretches_of(info), info["trial"]["model"], info["trial"]["dataset"])


@contextmanager
def only_one_process(folder: Path, wait: float | None) -> Iterator[None]:
    """Hold the lock of a run's folder, which a process loses when it ends in whatever way.

    The lock lies beside the folder, so that the folder itself can be put aside.

    Args:
        wait: seconds to wait for a process that holds it; None waits to its end, with a warning.

    Raises: TimeoutError: another process still holds it.
    """
    locks = folder.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{folder.name}.lock")
    holder = locks / f"{folder.name}.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        busy = f"{folder}: {_words_for(holder)} works on this run"
        if wait != 0:
            warnings.warn(f"{busy}; waiting for it.", stacklevel=4)
        try:
            lock.acquire(timeout=-1 if wait is None else wait)
        except Timeout:
            raise TimeoutError(f"{busy}. Wait for it, or choose another root.") from None
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _words_for(holder: Path) -> str:
    """Who holds a lock, by what it has written beside it."""
    try:
        who = json.loads(holder.read_text())
        return f"process {who['pid']} on {who['host']}, since {who['since']},"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def put_aside(folder: Path) -> None:
    """Rename a run's folder, to one that :func:`read_records` does not read."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
    folder.rename(folder.with_name(f"{folder.name}{REPLACED}{now}"))


def _batch_accuracy(batch: Batch) -> Tensor:
    """The share of a batch that was classified as labelled, before its update."""
    return (batch.logits.argmax(1) == batch.labels).double().mean()


class _History:
    """What a run has so far besides its Training.

    Attributes:
        records: the rows of records.csv.
        stretches: where and by what code the run was begun and gone on with, in order.
        guard: what undoes a collapse of its training, if anything does.
        last: the record of the last iteration.
    """

    def __init__(
        self,
        records: list[dict[str, Any]],
        stretches: list[dict[str, Any]],
        wall_seconds: float,
        guard: Guard | None = None,
    ):
        self.records = records
        self.stretches = stretches
        self.guard = guard
        self.last: Record | None = None
        # of the batches since the last row: the sum of their robust accuracies, and how many
        self.right: Tensor | float = 0.0
        self.batches = 0
        self.batch_accuracy: Tensor | float = 0.0  # of the last batch
        self.checked: float | None = None  # what the guard's last check since the last row found
        self._good = {"rows": 0, **self._sums()}  # when the guard last found no collapse
        self._watched = 0  # the iteration of that batch
        self._started = time.perf_counter() - wall_seconds
        self._saved_at = time.monotonic()  # when the last checkpoint was written or read
        self._saved_records = -1  # how many records it holds; none is known of yet

    @property
    def wall_seconds(self) -> float:
        """Seconds that the run has taken, all its stretches together."""
        return time.perf_counter() - self._started

    def begin_stretch(self, trial: Trial, training: Training) -> None:
        known = provenance(trial, training)
        stretch = {"began": known["written"], "after_iteration": training.iteration}
        for name in ("revision", "code", "versions", "device", "threads", "command"):
            stretch[name] = known[name]
        self.stretches.append(stretch)

    def origin(self, trial: Trial, training: Training) -> dict[str, Any]:
        return {**provenance(trial, training), "stretches": self.stretches}

    def watch(self, record: Record, training: Training) -> None:
        """Take note of an iteration, whether a row follows it or not."""
        self.last = record
        if isinstance(record, GuardedRecord) and record.checked is not None:
            self.checked = record.checked
        self._look_at_batch(training)

    def _sums(self) -> dict[str, Any]:
        """What is known of the batches since the last row, as plain numbers."""
        return {
            "right": float(self.right),
            "batches": self.batches,
            "batch_accuracy": float(self.batch_accuracy),
            "checked": self.checked,
        }

    def _take_sums(self, sums: dict[str, Any]) -> None:
        self.right = sums["right"]
        self.batches = sums["batches"]
        self.batch_accuracy = sums["batch_accuracy"]
        self.checked = sums["checked"]

    def keep_if_good(self, record: Record) -> None:
        """Remember how things are now, if the guard's check says that it may come back here."""
        if isinstance(record, GuardedRecord) and record.checked is not None:
            self._good = {"rows": len(self.records), **self._sums()}

    def go_back(self, training: Training) -> None:
        """Drop the rows of iterations that the guard has undone: their model no longer exists."""
        del self.records[self._good["rows"] :]
        self._take_sums(self._good)
        self._watched = training.iteration

    def add(self, record: Record, training: Training) -> None:
        """Add a row.

        Beside the record it says how hard the drawn examples are: ``batch_accuracy`` is the robust
        accuracy on this iteration's batch, and ``drawn_accuracy`` its mean over the batches since
        the row before; each is from before the batch's update. ``met_again`` is the share of all
        draws so far that met an image which had been drawn before. Of a guarded run ``checked`` is
        what the guard's last check since the row before has found, and ``collapses`` how often
        training has gone back; draws that it has undone count as draws.
        """
        images_seen = int(training.seen.sum())
        row = {
            "batch_accuracy": float(self.batch_accuracy),
            "drawn_accuracy": float(self.right / max(1, self.batches)),
            "met_again": 1 - images_seen / record.examples,
        }
        whole = {**asdict(record), **row}
        if isinstance(record, GuardedRecord):
            whole["checked"] = self.checked
        self.records.append(whole)
        self.right = 0.0
        self.batches = 0
        self.checked = None

    def _look_at_batch(self, training: Training) -> None:
        """Count the last batch, once."""
        # there is none after a checkpoint was loaded, which has counted it
        if training.batch is None or training.iteration == self._watched:
            return
        # a tensor, as a GPU would have to wait for a number
        self.batch_accuracy = _batch_accuracy(training.batch)
        self.right = self.right + self.batch_accuracy
        self.batches += 1
        self._watched = training.iteration

    def checkpoint_is_due(self) -> bool:
        """Whether the last checkpoint is old enough for another one."""
        return time.monotonic() - self._saved_at >= CHECKPOINT_SECONDS

    def checkpoint_is_whole(self) -> bool:
        """Whether the last checkpoint holds every record there is."""
        return self._saved_records == len(self.records)

    def write_records(self, folder: Path) -> None:
        """Write records.csv; there is none as long as there are no records."""
        path = folder / "records.csv"
        if self.records:
            write_whole(path, pd.DataFrame(self.records).to_csv(index=False).encode())
        else:
            path.unlink(missing_ok=True)

    def save_checkpoint(self, folder: Path, trial: Trial, training: Training) -> None:
        """Write checkpoint.pt, from which a run that is killed goes on.

        It holds the records as well, so that the run has those of its own past alone.
        """
        self._look_at_batch(training)  # its record may wait for its evaluation
        state = {
            "id": trial.id,
            "training": training.state_dict(),
            "records": self.records,
            "stretches": self.stretches,
            "wall_seconds": self.wall_seconds,
            **self._sums(),
        }
        if self.guard is not None:
            state["guard"] = self.guard.state_dict()
            state["good"] = self._good

        def save_state(path: Path) -> None:
            torch.save(state, path)

        write_whole(folder / "checkpoint.pt", save_state)
        self._saved_at = time.monotonic()
        self._saved_records = len(self.records)

    def load(self, state: dict[str, Any], training: Training) -> None:
        """Take what a checkpoint says besides the rows, once the training has loaded its part."""
        self._take_sums({"checked": None} | state)  # which a checkpoint of an older catlib lacks
        self._watched = training.iteration  # whose batch has been counted
        if self.guard is not None:
            self.guard.load_state_dict(state["guard"])
            self._good = state["good"]


def _new_or_resumed(
    folder: Path, trial: Trial, training: Training, guard: Guard | None, if_code_changed: str
) -> _History:
    """The history of a run that begins now, or that goes on from the checkpoint in its folder.

    A checkpoint is loaded into ``training``. One of other code is refused, put aside with its
    folder so that the run begins anew, or taken as it is, as ``if_code_changed`` says. The folder
    exists afterwards, without the leftovers of a process that was killed.

    Raises: ValueError: the checkpoint is damaged, of another trial, or of other code and refused.
    """
    checkpoint = folder / "checkpoint.pt"
    state = _read_checkpoint(checkpoint, trial, training.device) if checkpoint.exists() else None
    if state is not None:
        changed = _changed_code(state["stretches"], trial.model, trial.dataset)
        if changed and if_code_changed == "refuse":
            raise ValueError(_other_code(folder, "begun", changed))
        if changed and if_code_changed == "repeat":
            put_aside(folder)
            state = None
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    if state is None:
        history = _History(records=[], stretches=[], wall_seconds=0.0, guard=guard)
    else:
        training.load_state_dict(state["training"])
        history = _History(state["records"], state["stretches"], state["wall_seconds"], guard)
        history.load(state, training)
    history.write_records(folder)  # without those after the checkpoint, which are made again
    history.begin_stretch(trial, training)
    return history


def _read_checkpoint(path: Path, trial: Trial, device: torch.device) -> dict[str, Any]:
    advice = f"Delete the folder {path.parent} to begin this run anew."
    try:
        content = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()  # compares the checksums
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
        state = torch.load(io.BytesIO(content), weights_only=True, map_location=device)
        of = state["id"]
    except Exception as error:  # a damaged file can raise nearly anything
        raise ValueError(f"{path} cannot be read ({error}). {advice}") from error
    if of != trial.id:
        raise ValueError(f"{path} is of the run {of}, not of {trial.id}. {advice}")
    return state


def _finish(folder: Path, trial: Trial, training: Training, history: _History) -> None:
    """Judge the final model if the trial asks for it, and write that the run is done."""
    if history.last is not None and history.last.accuracy is None:
        # of a run without evaluations, the last record is kept
        history.add(history.last, training)
        history.write_records(folder)
    if not history.checkpoint_is_whole():
        history.save_checkpoint(folder, trial, training)
    final = {}
    if trial.final_restarts:
        model = training.judged_model()
        images, labels = judged_images(trial, training, trial.final_size)
        judge = trial.judge(trial.final_restarts)
        final["accuracy"] = accuracy(model, images, labels)
        final["robust_accuracy"] = training.judge(model, images, labels, judge)
        auditor = trial.auditor()
        if auditor is not None:
            final["full_strength"] = training.judge(model, images, labels, auditor)
            final["moved"] = movement(model, images, labels, trial.judge())
    info = {
        "status": "done",
        **history.origin(trial, training),
        "wall_seconds": history.wall_seconds,
        "final": final,
    }
    write_json(folder / "run.json", info)


def movement(
    model: nn.Module, images: Tensor, labels: Tensor, attack: PGD | BatchMean, *, seed: int = 0
) -> float:
    """How far an attack moves a pixel on the mean, in units of its epsilon; at most 1 in l-inf.

    Args:
        model: images (B, C, H, W) to logits (B, K), attacked in eval mode, in batches of 512.
        images, labels: (n, C, H, W) in [0, 1], and (n,).
        seed: of the random starts.
    """
    if attack.epsilon == 0:
        return 0.0
    generator = torch.Generator(images.device).manual_seed(seed)
    total = 0.0
    with judging(model, images.device) as interrupts:
        pairs = zip(images.split(512), labels.split(512), strict=True)
        for x, y in interrupts.polled(pairs):
            if isinstance(attack, PGD):
                adversarial = attack(model, x, y, generator=generator)
            else:
                adversarial = attack(model, x, y)
            total += (adversarial - x).abs().double().sum().item()
    return total / images.numel() / attack.epsilon


def is_done(folder: str | Path) -> bool:
    """Whether a run is finished. Its run.json alone says so, and is written last.

    Raises: ValueError: the run.json cannot be read.
    """
    if not (Path(folder) / "run.json").exists():
        return False
    return read_run(folder)["status"] == "done"


def read_run(folder: str | Path) -> dict[str, Any]:
    """What the run.json in a run's folder says.

    Raises: ValueError: it cannot be read, or is none of a run; the message names it.
    """
    path = Path(folder) / "run.json"
    try:
        info = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}). Delete the folder to begin this run anew."
        ) from error
    if not isinstance(info, dict) or not {"status", "id", "trial"} <= set(info):
        raise ValueError(f"{path} is not the run.json of a run of catlib.")
    return info


def provenance(trial: Trial, training: Training) -> dict[str, Any]:
    """What one must know to believe a number: settings, versions, device, code, time."""
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
        "code": code_of(trial.model, trial.dataset),
        "command": " ".join(sys.argv),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


@cache  # a process goes on with the code that it has loaded
def revision() -> str:
    """The commit of the code, marked "-dirty" when files differ.

    Outside a checkout it is what the environment variable CATLIB_REVISION says, else "unknown".
    """
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("CATLIB_REVISION") or "unknown"
    return answer.stdout.strip()


def read_records(root: str | Path = "runs") -> pd.DataFrame:
    """Every record of every finished run in a folder, with the run's id and settings as columns.

    A setting with the name of something measured, such as loss, is called setting_loss.

    A warning names the runs that cannot be read, which are left out, and those of other code than
    this one, which are not. Runs that were put aside are left out.
    """
    tables = []
    unreadable = []
    of_other_code = []
    for path in sorted(Path(root).glob("*/run.json")):
        folder = path.parent
        if REPLACED in folder.name:
            continue
        try:
            if not is_done(folder):
                continue
            info = read_run(folder)
            records = pd.read_csv(folder / "records.csv").dropna(axis="columns", how="all")
            settings = settings_beside(records, info["trial"])
            table = records.assign(id=info["id"], **settings)
            changed = changed_code(folder)
        except Exception as error:  # a file from elsewhere can raise nearly anything
            unreadable.append(f"{path} ({error})")
            continue
        tables.append(table)
        if changed:
            of_other_code.append(folder.name)
    if unreadable:
        warnings.warn(f"left out, as they cannot be read: {'; '.join(unreadable)}", stacklevel=2)
    if of_other_code:
        warnings.warn(
            f"made by other code than this, in {root}: {', '.join(of_other_code)}. "
            "run(..., if_code_changed='repeat') makes a run anew.",
            stacklevel=2,
        )
    if not tables:
        return pd.DataFrame()
    return pd.concat(tables, ignore_index=True)


def settings_beside(measured: Iterable[str], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings for a table that has these measured columns.

    A setting with the name of something measured, such as loss, is called setting_loss.
    """
    taken = set(measured)
    return {f"setting_{name}" if name in taken else name: v for name, v in settings.items()}


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=1).encode())
