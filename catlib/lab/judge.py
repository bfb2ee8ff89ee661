"""How robust is this model, and is the number to be believed? Every measurement, in one report.

    report = judge("my_models:small_net", "digits", weights="small_net.pt", epsilon=0.1)
    print(report)                     # a table, then what casts doubt on it, and what was left out
    report.table, report.to_json()    # the same for programs

The measurements are also to be had one by one, from `measurements`, for a study that saves each.
"""

import json
import logging
import math
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import catlib
from catlib import PGD, Data, accuracy, build_model, check_model, load_data, robust_accuracy
from catlib.attacks import check_radius
from catlib.checks import check_count
from catlib.models import MODELS, check_width
from catlib.own import check_classifier

from ..files import write_whole

FACTORS = (0.1, 1, 10, 100)  # by which logits are multiplied
SCALED_IMAGES = 1000  # test images, at most, that are attacked with multiplied logits
CHECKED_IMAGES = 64  # test images, at most, that check_model sees
AUTOATTACK_PART = 250  # test images in one call of AutoAttack
AUTOATTACK_NORMS = {"linf": "Linf", "l2": "L2"}
AUTOATTACK_PASSES = 7900  # forward passes of an image that survives all of it: 111, 928, 1837, 5012
FEWEST_CLASSES = 4  # that the targeted loss of AutoAttack's second attack can be computed for
WEIGHTS_OF_A_FOLDER = ("checkpoint.pt", "model.pt")  # of a run, of `catlib train`
BATCH_COST = 30  # images; of a small model on a CPU, measured at 10 to 100
FEW_IMAGES = 400  # below, the chance of which images were taken is more than 5 points either way
NOTABLE = 0.01  # a smaller change of a robust accuracy is no finding


@dataclass(frozen=True)
class Report:
    """What `judge` found out about a model."""

    model: str
    weights: str | None
    data: str
    norm: str
    epsilon: float
    seed: int
    table: pd.DataFrame  # a row a measurement, by its name: value, images, meaning
    findings: tuple[str, ...]  # what casts doubt on the robust accuracies, a sentence each
    left_out: tuple[str, ...]  # what was not measured, and why
    device: str
    versions: dict[str, str]
    seconds: float

    def __str__(self) -> str:
        origin = f", weights of {self.weights}" if self.weights else ""
        software = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        lines = [
            f"{self.model}{origin}, on the test images of {self.data}",
            f"threat model: {self.norm}, epsilon {self.epsilon:.4g}, images in [0, 1]",
            "",
            _aligned(self.table),
            "",
            "Of the multiplied logits the smallest value counts; one above x1 is a failed attack.",
            "",
            *_listed("What casts doubt on these numbers:", self.findings),
            *_listed("Left out:", self.left_out),
            f"seed {self.seed}; {self.device}; {software}; {self.seconds:.0f} s",
        ]
        return "\n".join(lines)

    def to_json(self) -> str:
        """The report as JSON text; the measurements are an object by name."""
        content = {
            "model": self.model,
            "weights": self.weights,
            "data": self.data,
            "norm": self.norm,
            "epsilon": self.epsilon,
            "seed": self.seed,
            "measurements": self.table.to_dict(orient="index"),
            "findings": list(self.findings),
            "left_out": list(self.left_out),
            "device": self.device,
            "versions": self.versions,
            "seconds": self.seconds,
        }
        return json.dumps(content, indent=1)


def _aligned(table: pd.DataFrame) -> str:
    """A table as text, with its last column, which is text itself, flush left."""
    width = table.meaning.str.len().max()
    flush_left = {"meaning": f"{{:<{width}}}".format}
    text = table.to_string(float_format="{:.4f}".format, formatters=flush_left, justify="left")
    return "\n".join(line.rstrip() for line in text.splitlines())


def _listed(heading: str, sentences: Sequence[str]) -> list[str]:
    if not sentences:
        return [f"{heading} nothing."]
    return [heading, *(f"- {sentence}" for sentence in sentences)]


def judge(
    model: nn.Module | str,
    data: Data | str,
    *,
    epsilon: float,
    norm: str = "linf",
    width: int | None = None,
    weights: str | Path | Mapping[str, Tensor] | None = None,
    images: int | None = None,
    autoattack: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Measure how accurate, robust and calibrated a model is, and whether to believe it.

    Measured are the accuracy; the robust accuracy under PGD with 20 steps and 10 restarts, that of
    the worst class (one restart), that with logits multiplied by 0.1, 1, 10 and 100 (one restart;
    Carlini and Wagner, 2017: saturated logits hide the gradient), that under AutoAttack (Croce and
    Hein, ICML 2020); and the calibration error. `check_model` looks for what would make them
    worthless.

    Args:
        model: images (B, C, H, W) in [0, 1] to logits (B, K), judged in eval mode on the device
            where it is, and afterwards as it was, with new weights if some are given; or a name
            for `build_model`, as "my_models:small_net", and then on a GPU if there is one.
        data: whose test images are used; or a name for `load_data`.
        epsilon: radius of the attacks, in units of images in [0, 1].
        norm: of the ball, "linf" or "l2".
        width: of the model "resnet18" alone: the channels of its first convolution (`build_model`).
        weights: what to load into the model first: a state dict, or a file that has one, such as
            a run's checkpoint.pt, or the folder of the run (see `read_weights`).
        images: use the first so many test images; None is all.
        autoattack: the first so many of them for AutoAttack, which takes by far the longest;
            0 is none.
        seed: of every random start, and of the weights of a model that is given by name.
        progress: show the measurement that is running and the time left.

    Raises: ValueError: an argument, a model or weights that cannot be used; nothing was measured.
    """
    started = time.perf_counter()
    attack = PGD(epsilon, steps=20, restarts=10, norm=norm)
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon!r}; it must be above 0, in units of [0, 1].")
    check_radius("epsilon", epsilon, norm)
    if images is not None:
        check_count("images", images, at_least=1)
    check_count("autoattack", autoattack, at_least=0)
    if isinstance(data, str):
        data = load_data(data)
    name = model if isinstance(model, str) else type(model).__name__
    if width is not None:
        check_width(name, width)
        name = f"{name} of width {width}"
    if isinstance(model, str):
        model = build_model(model, data, seed=seed, width=width)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
    if weights is not None:
        load_weights(model, weights)
    check_classifier(model, data, name)

    x, y = _test_images(model, data, images)
    autoattack = min(autoattack, len(y))
    left_out = _what_autoattack_leaves_out(autoattack, len(data.classes), norm, x)
    if not autoattack_is_installed():
        autoattack = 0
    plan = dict(measurements(model, x, y, attack, autoattack=autoattack, seed=seed))
    with _as_it_was(model), _remarks_of_autoattack() as remarks:
        findings = _findings_of_check_model(model, x[:CHECKED_IMAGES])
        measured = _measure_all(model, plan, _strongest_name(attack), progress)
    values = together(measured, autoattack)
    return Report(
        model=name,
        weights=str(weights) if isinstance(weights, str | Path) else None,
        data=data.name,
        norm=norm,
        epsilon=float(epsilon),
        seed=seed,
        table=_table(values, plan, autoattack),
        findings=(
            *_findings_of_guessing(values["accuracy"], data.y_test[: len(y)]),
            *_findings_of_few_images(values, attack, autoattack, len(y)),
            *_findings_of_weak_attacks(values, attack, autoattack, model, x, y),
            *findings,
            *_findings_of_scaling(values, attack),
            *remarks,
        ),
        left_out=tuple(left_out),
        device=x.device.type,
        versions=_versions(autoattack),
        seconds=round(time.perf_counter() - started, 1),
    )


def _test_images(model: nn.Module, data: Data, count: int | None) -> tuple[Tensor, Tensor]:
    """The first so many test images and their labels, on the device of the model."""
    first_parameter = next(model.parameters(), torch.empty(0))
    images, labels = data.test(slice(count))
    return images.to(first_parameter.device), labels.to(first_parameter.device)


def _findings_of_check_model(model: nn.Module, images: Tensor) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each finding is also a warning; here it is in the report
        return check_model(model, images)


def _findings_of_guessing(accuracy_found: float, labels: Tensor) -> list[str]:
    """If naming one class for every image would be right as often, the model learned nothing."""
    commonest = labels.bincount().max().item() / len(labels)
    if accuracy_found > commonest:
        return []
    return [
        f"accuracy is {accuracy_found:.1%}, and naming the commonest class for every image is "
        f"right for {commonest:.1%}: the model has learned nothing that counts here, and that it "
        "is robust means nothing."
    ]


def _findings_of_few_images(
    values: dict[str, float], attack: PGD, autoattack: int, images: int
) -> list[str]:
    """How far the robust accuracy of so few images may lie from that of all such images.

    It is that under AutoAttack, the number to quote, or else that under the strongest PGD. The
    interval is that of Clopper and Pearson (1934), which holds for shares near 0 and 1, too.
    """
    from scipy.stats import binomtest  # slow to import, and few reports need it

    name = "autoattack" if autoattack else _strongest_name(attack)
    count = autoattack or images
    if count >= FEW_IMAGES:
        return []
    right = round(values[name] * count)
    interval = binomtest(right, count).proportion_ci(0.95)
    return [
        f"{count} images are few: {name} is {right} of them, {values[name]:.1%}, and of all such "
        f"images it may be {interval.low:.1%} to {interval.high:.1%}, by the chance of which "
        "images were taken (95 %)."
    ]


def _findings_of_weak_attacks(
    values: dict[str, float], attack: PGD, autoattack: int, model: nn.Module, x: Tensor, y: Tensor
) -> list[str]:
    """If no attack broke an image, they do not tell how robust the model is."""
    attacked = {_strongest_name(attack): len(y)}
    attacked |= {_scaled_name(attack, factor): SCALED_IMAGES for factor in FACTORS}
    if autoattack:
        attacked["autoattack"] = autoattack
    if values["accuracy"] == 0:
        return []  # there was none to break
    for name, count in attacked.items():
        count = min(count, len(y))
        right = accuracy(model, x[:count], y[:count])
        if round(values[name] * count) < round(right * count):
            return []
    return [
        "no attack broke a single image: the model is robust at this epsilon, or no attack found "
        "its gradient. Try a larger epsilon, until some images break."
    ]


def _findings_of_scaling(values: dict[str, float], attack: PGD) -> list[str]:
    """If multiplied logits lower the robust accuracy, it was too high: PGD lacked a gradient."""
    scaled = {factor: values[_scaled_name(attack, factor)] for factor in FACTORS}
    worst = min(FACTORS, key=lambda factor: scaled[factor])
    if scaled[1] - scaled[worst] <= NOTABLE:
        return []
    return [
        f"PGD leaves {scaled[1]:.1%} robust, but only {scaled[worst]:.1%} when the logits are "
        f"multiplied by {worst:g}: the loss hides the gradient; believe the smaller number."
    ]


def _table(values: dict[str, float], plan: dict[str, "Measurement"], autoattack: int):
    rows = {}
    for name, value in values.items():
        if name == "autoattack":
            rows[name] = (value, autoattack, plan["autoattack_0"].meaning)
        else:
            rows[name] = (value, plan[name].images, plan[name].meaning)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "images", "meaning"])


def _versions(autoattack: int) -> dict[str, str]:
    versions = {"catlib": catlib.__version__, "torch": torch.__version__}
    if autoattack:
        versions["pyautoattack"] = version("pyautoattack")
    return versions


@dataclass(frozen=True)
class Measurement:
    """One number that is still to be measured: call it."""

    meaning: str
    measure: Callable[[], float]
    images: int
    cost: float  # as `_cost` reckons it, if no image is broken

    def __call__(self) -> float:
        return self.measure()


def measurements(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: PGD,
    *,
    autoattack: int = 1000,
    part: int = AUTOATTACK_PART,
    attacks: Sequence[str] | None = None,
    seed: int = 0,
) -> Iterator[tuple[str, Measurement]]:
    """Names and functions: what is said of a trained model, one number each.

    Args:
        model: on the device of the images; whatever is called leaves it as it was.
        images, labels: (n, C, H, W) in [0, 1] and (n,), those of the test.
        attack: the strongest PGD; where many attacks are made it is used with one restart.
        autoattack: AutoAttack judges the first so many images; 0 is none.
        part: images in one measurement of AutoAttack; `together` makes one number of them.
        attacks: those of AutoAttack instead of its standard four.
        seed: of the random starts.
    """
    n = len(labels)
    once = replace(attack, restarts=1)
    pgd = f"pgd_{attack.steps}"
    yield "accuracy", Measurement("right", partial(accuracy, model, images, labels), n, _cost(n, 1))
    yield (
        _strongest_name(attack),
        Measurement(
            f"right under PGD, {attack.steps} steps, {attack.restarts} random starts",
            partial(robust_accuracy, model, images, labels, attack, seed=seed),
            n,
            _cost(n, attack.steps * attack.restarts),
        ),
    )
    yield (
        f"worst_class_{pgd}",
        Measurement(
            "right under PGD, one random start, in the class where it is least",
            partial(worst_class, model, images, labels, once, seed=seed),
            n,
            _cost(n, attack.steps),
        ),
    )
    yield (
        "calibration_error",
        Measurement(
            "gap between confidence and accuracy, in 15 bins of confidence",
            partial(calibration_error, model, images, labels),
            n,
            _cost(n, 1),
        ),
    )
    few = slice(SCALED_IMAGES)
    yield from _with_scaled_logits(model, images[few], labels[few], once, seed)
    if autoattack:
        few = slice(autoattack)
        yield from _autoattack_in_parts(
            model, images[few], labels[few], attack, part, attacks, seed
        )


def _with_scaled_logits(
    model: nn.Module, images: Tensor, labels: Tensor, attack: PGD, seed: int
) -> Iterator[tuple[str, Measurement]]:
    for factor in FACTORS:
        scaled = Scaled(model, factor)
        yield (
            _scaled_name(attack, factor),
            Measurement(
                f"right under PGD, one random start, logits times {factor:g}",
                partial(robust_accuracy, scaled, images, labels, attack, seed=seed),
                len(labels),
                _cost(len(labels), attack.steps),
            ),
        )


def _autoattack_in_parts(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: PGD,
    part: int,
    attacks: Sequence[str] | None,
    seed: int,
) -> Iterator[tuple[str, Measurement]]:
    for start in range(0, len(labels), part):
        x = images[start : start + part]
        y = labels[start : start + part]
        yield (
            f"autoattack_{start}",
            Measurement(
                "right after every attack of AutoAttack",
                partial(_under_autoattack, model, x, y, attack, attacks, seed),
                len(y),
                _cost(len(y), AUTOATTACK_PASSES),
            ),
        )


def _cost(images: int, passes: int) -> int:
    """What so many passes through the model cost, in images: a batch costs as much as its images
    and some more, which is what counts when few are left.
    """
    batches = math.ceil(images / 512)
    return passes * (images + BATCH_COST * batches)


def _strongest_name(attack: PGD) -> str:
    return f"pgd_{attack.steps}_{attack.restarts}"


def _scaled_name(attack: PGD, factor: float) -> str:
    return f"pgd_{attack.steps}_logits_x{factor:g}"


def together(measured: dict[str, float], autoattack: int) -> dict[str, float]:
    """The measurements with AutoAttack's parts, which cover so many images, as one number."""
    starts = [int(name.split("_")[1]) for name in measured if name.startswith("autoattack_")]
    values = {name: v for name, v in measured.items() if not name.startswith("autoattack_")}
    if starts:
        ends = [*starts[1:], autoattack]
        right = sum(
            (end - start) * measured[f"autoattack_{start}"]
            for start, end in zip(starts, ends, strict=True)
        )
        values["autoattack"] = right / autoattack
    return values


class Scaled(nn.Module):
    """The same classifier with its logits multiplied: equal predictions, another gradient."""

    def __init__(self, model: nn.Module, factor: float):
        super().__init__()
        self.model = model
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.model(images)


def worst_class(
    model: nn.Module, images: Tensor, labels: Tensor, attack: Callable, *, seed: int = 0
) -> float:
    """The robust accuracy of the class where it is least."""
    return min(
        robust_accuracy(model, images[labels == c], labels[labels == c], attack, seed=seed)
        for c in labels.unique()
    )


@torch.no_grad()
def calibration_error(model: nn.Module, images: Tensor, labels: Tensor, bins: int = 15) -> float:
    """How far confidence lies from accuracy on clean images, in bins of confidence, on average.

    The expected calibration error (Guo et al., ICML 2017): the gap between a bin's mean confidence
    and its accuracy, weighted by its share of the images.
    """
    with _as_it_was(model):
        probabilities = torch.cat([model(x).softmax(1) for x in images.split(1000)])
    confidence, predicted = probabilities.max(1)
    right = (predicted == labels).double()
    bin_of = (confidence * bins).long().clamp(max=bins - 1)
    error = 0.0
    for b in bin_of.unique():
        inside = bin_of == b
        gap = abs(right[inside].mean() - confidence[inside].double().mean()).item()
        error += gap * inside.double().mean().item()
    return error


def _under_autoattack(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: PGD,
    attacks: Sequence[str] | None,
    seed: int,
) -> float:
    """Share of the images that are right after every attack of AutoAttack, in the attack's ball."""
    from pyautoattack import AutoAttack

    chosen = {"version": "custom", "attacks": list(attacks)} if attacks else {}
    devices = [images.device] if images.is_cuda else []
    with _as_it_was(model), torch.random.fork_rng(devices=devices):
        with torch.no_grad():
            classes = model(images[:1]).shape[1]
        autoattack = AutoAttack(
            model,
            norm=AUTOATTACK_NORMS[attack.norm],
            eps=attack.epsilon,
            device=images.device,
            seed=seed,
            **chosen,
        )
        # it aims at nine wrong classes, however few there are
        autoattack.apgd_targeted.n_target_classes = min(9, classes - 1)
        autoattack.fab.n_target_classes = min(9, classes - 1)
        if classes < FEWEST_CLASSES:
            autoattack.attacks_to_run = [a for a in autoattack.attacks_to_run if a != "apgd-t"]
        if not _square_can_tile(attack.norm, images):
            autoattack.attacks_to_run = [a for a in autoattack.attacks_to_run if a != "square"]
        adversarial, _ = autoattack.run_standard_evaluation(images, labels, batch_size=500)
    return accuracy(model, adversarial, labels)


def autoattack_is_installed() -> bool:
    try:
        import pyautoattack  # noqa: F401
    except ImportError:
        return False
    return True


def _square_can_tile(norm: str, images: Tensor) -> bool:
    """Whether Square, the last attack of AutoAttack, has a start for images (B, C, H, W).

    In l2 it lays tiles of a fifth of the height from a margin on, as many as the whole side has
    room for. Where the margin pushes the last one over the edge, as with 12 pixels, it fails.
    """
    if norm != "l2":
        return True
    height, width = images.shape[2:]
    tile = height // 5
    margin = (height - 5 * tile) // 2
    if tile <= 1:
        return tile == 1  # a single pixel is laid over no edge
    return all(margin + side // tile * tile <= side for side in (height, width))


def _what_autoattack_leaves_out(number: int, classes: int, norm: str, images: Tensor) -> list[str]:
    if number == 0:
        return ["AutoAttack, as asked: autoattack is 0."]
    if not autoattack_is_installed():
        return ["AutoAttack: its package is not installed; pip install pyautoattack."]
    left_out = []
    if classes < FEWEST_CLASSES:
        left_out.append(
            f"the second attack of AutoAttack, APGD-T: its loss needs {FEWEST_CLASSES} classes, "
            f"and the data have {classes}."
        )
    if not _square_can_tile(norm, images):
        height, width = images.shape[2:]
        left_out.append(
            f"the last attack of AutoAttack, Square: in l2 its tiles do not fit into images of "
            f"{height} x {width} pixels."
        )
    return left_out


@contextmanager
def _remarks_of_autoattack() -> Iterator[list[str]]:
    """What AutoAttack warns of while it runs, each remark once, for the report."""
    remarks: list[str] = []
    seen = set()

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage().replace(" See flags_doc.md for details.", "")
            kind = "".join(letter for letter in text if not letter.isdigit())
            if kind not in seen:
                seen.add(kind)
                remarks.append(f"AutoAttack says: {text}")

    logger = logging.getLogger("auto-attack")
    handler = Keep(logging.WARNING)
    propagated = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield remarks
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode and freeze its parameters, and afterwards hand it back as it was.

    AutoAttack's third attack would otherwise add to the gradients of the parameters.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter in trained:
            parameter.requires_grad_(True)


def _measure_all(
    model: nn.Module, plan: dict[str, Measurement], strongest: str, progress: bool
) -> dict[str, float]:
    """Every measurement of the plan, with a bar that counts what is sent through the model.

    An image that is broken is attacked no further. Once the measurement ``strongest`` is made, the
    time left is therefore reckoned for the share of the images that it found robust.
    """
    from tqdm.auto import tqdm

    measured: dict[str, float] = {}
    left = dict(plan)
    share = 1.0
    bar = tqdm(
        total=sum(step.cost for step in plan.values()),
        disable=not progress,
        smoothing=0,  # the mean speed: single measurements are too unlike
        bar_format="{percentage:3.0f}%|{bar}| {elapsed} gone, {remaining} left: {desc}",
    )
    # a hook that returns something would change the model's input
    hook = model.register_forward_pre_hook(lambda _, inputs: _advance(bar, len(inputs[0])))
    try:
        for number, (name, step) in enumerate(plan.items(), 1):
            bar.set_description_str(f"{name}, {number} of {len(plan)}")
            measured[name] = step()
            del left[name]
            if name == strongest:
                share = max(measured[name], 0.05)
            bar.total = bar.n + share * sum(step.cost for step in left.values())
            bar.refresh()
    finally:
        hook.remove()
        bar.close()
    return measured


def _advance(bar: Any, images: int) -> None:
    bar.update(min(_cost(images, 1), max(bar.total - bar.n, 0)))


def load_weights(model: nn.Module, weights: str | Path | Mapping[str, Tensor]) -> None:
    """Load a state dict, or a file that has one, into a model.

    Args:
        model: changed in place; it stays on its device.
        weights: a state dict, or the file of one; see :func:`read_weights`.

    Raises: ValueError: the file cannot be read, or does not fit the model, which is then as it was.
    """
    if isinstance(weights, Mapping):
        name = "the state dict"
        state = dict(weights)
    else:
        name = str(weights)
        state = read_weights(weights)
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    misshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    complaints = []
    if missing:
        complaints.append(f"it lacks {_some(missing)}")
    if unknown:
        complaints.append(f"the model does not have {_some(unknown)}")
    if misshaped:
        complaints.append(f"it has {_some(misshaped)}")
    if complaints:
        raise ValueError(f"{name} does not fit the model: {'; '.join(complaints)}.")
    model.load_state_dict(state)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file: one that ``torch.save(model.state_dict(), path)`` wrote, or a run's
    ``checkpoint.pt`` or ``best.pt``. The folder of a run stands for its ``checkpoint.pt``, that of
    `catlib train` for its ``model.pt``.

    Raises: ValueError: there is no such file, or it has no state dict. No code in it is run.
    """
    path = Path(path)
    if path.is_dir():
        # the folder of `catlib train` has the best weights at its top
        path = next((path / name for name in WEIGHTS_OF_A_FOLDER if (path / name).exists()), path)
    if not path.is_file():
        what = f"{path}, or {', '.join(WEIGHTS_OF_A_FOLDER)} in it" if path.is_dir() else path
        raise ValueError(f"there is no file {what}, to read weights from.")
    advice = "Write the file with torch.save(model.state_dict(), path)."
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, such as a whole model, or is damaged; "
            f"it is not opened, since that could run code. {advice}"
        ) from error
    except Exception as error:  # a damaged file can raise nearly anything
        raise ValueError(f"{path} is no file of weights, or is damaged. {advice}") from error
    for part in ("training", "model"):  # a checkpoint has both, best.pt has the second
        if isinstance(state, dict) and isinstance(state.get(part), dict):
            state = state[part]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} has no state dict, neither alone nor as a checkpoint. {advice}")
    return state


def _some(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def read_epsilon(text: str | float) -> float:
    """A number, or one written as a fraction: "8/255"."""
    try:
        return float(Fraction(str(text).replace(" ", "")))
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"epsilon is {text!r}; it must be a number or a fraction, as 0.03 or 8/255."
        ) from error


def judge_command(options) -> int:
    """Judge a model from the command line, print the report, and return the exit status.

    Args:
        options: has the values of ``--model`` (module:function, cnn or resnet18), ``--width`` (a
            number or None), ``--weights`` (a file, the folder of a run, or None), ``--data`` (a
            name or path), ``--epsilon`` (text: 8/255), ``--norm``, ``--images`` (a number or None),
            ``--autoattack`` (a number), ``--json`` (a file or None).
    """
    try:
        if options.model in MODELS and options.weights is None:
            raise ValueError(
                f"--model {options.model} alone has random weights; add --weights FILE."
            )
        if options.json is not None and not Path(options.json).absolute().parent.is_dir():
            raise ValueError(f"--json {options.json}: there is no such folder; make it first.")
        data = load_named(options.data)
        report = judge(
            options.model,
            data,
            epsilon=read_epsilon(options.epsilon),
            norm=options.norm,
            width=options.width,
            weights=options.weights,
            images=options.images,
            autoattack=options.autoattack,
            progress=sys.stderr.isatty(),  # a bar would fill a file with its lines
        )
        print(report)
        if options.json is not None:
            write_whole(Path(options.json), report.to_json().encode())
    except (ValueError, OSError) as error:
        print(f"judge: {error}", file=sys.stderr)
        return 2
    return 0


def load_named(name: str) -> Data:
    """The data of this name or path.

    Raises: ValueError: there are none, also where a download failed.
    """
    try:
        return load_data(name)
    except RuntimeError as error:  # the download failed; the message says what to do
        raise ValueError(str(error)) from error
