"""Whether a GPU computes what the CPU does, how fast it is, and what the study takes: `catlib gpu`.

Nothing is downloaded: the checks use the embedded digits, the measurements random images.
"""

import copy
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from catlib import (
    PGD,
    CaseSampler,
    Data,
    Training,
    UniformSampler,
    build_model,
    information_gain,
    load_data,
    robust_accuracy,
)

from ..files import write_whole
from ..kernels.gpu import full_float32
from ..samplers import _SortStore, _TopKStore
from .batch.engine import SPAWN
from .paths import ROOT
from .runs import write_json
from .study.cost import H200, Command, Speed, commands_of, finals_of
from .study.plan import pieces_of

REPORT = ROOT / "runs" / "gpu.json"
SECONDS = 240.0  # after so long no further measurement begins
NO_GPU = (
    "There is no GPU here that torch can use (torch.cuda.is_available() is False). "
    "`catlib gpu --device cpu` tries the same checks and measurements on this CPU, in small."
)


@dataclass(frozen=True)
class Size:
    """How large the measurements are."""

    model: str
    pixels: int
    images: int
    sampling_number: int
    steps: int
    evaluated: int
    rounds: int


ON_GPU = Size("resnet18", 32, 50_000, 128, 10, 500, 10)
ON_CPU = Size("cnn", 8, 2000, 32, 2, 60, 2)


@dataclass(frozen=True)
class Check:
    """A comparison of the device with the CPU.

    Attributes:
        difference: between what both computed, in the unit that ``what`` names.
        allowed: the largest difference that rounding explains.
    """

    what: str
    difference: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.allowed  # a difference that is NaN is none that is allowed


@dataclass
class Report:
    """What was found on a machine; times in seconds."""

    machine: dict[str, str]
    checks: list[Check] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def speed(self) -> Speed:
        """The speed that the study's times follow from; what was left out is taken from an H200."""
        found = {
            name: self.measured.get(name, getattr(H200, name))
            for name in Speed.__dataclass_fields__
        }
        return Speed(**found)


def machine(device: torch.device) -> dict[str, str]:
    """What the machine is, in words."""
    found = {
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type != "cuda":
        return {"device": f"CPU, {torch.get_num_threads()} threads"} | found
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "capability": f"{properties.major}.{properties.minor}",
        "bfloat16": "yes" if torch.cuda.is_bf16_supported() else "no",
        "cuda": f"{torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
        "gpus": str(torch.cuda.device_count()),
    } | found


# ------------------------------------------------------------------ is it right


def checks(device: torch.device) -> Iterator[Check]:
    """The same work in float32 on the CPU and on the device, from the same numbers.

    A GPU's random numbers are not those of a CPU, so nothing here is drawn on the device. A step
    along the sign of a gradient turns a rounding error into a whole step where the gradient is
    nearly zero: therefore attacks are compared by the loss that they reach and on average.
    """
    data = load_data("digits")
    with full_float32(device):
        yield from _check_attack(data, device)
        yield _check_gain(device)
        yield from _check_draw(data.y_train, device)
        yield from _check_training(data, device)
        yield _check_resume(data, device)


def _both(model: nn.Module, device: torch.device) -> list[tuple[torch.device, nn.Module]]:
    return [(torch.device("cpu"), model), (device, copy.deepcopy(model).to(device))]


def _check_attack(data: Data, device: torch.device) -> Iterator[Check]:
    images, labels = data.test(slice(64))
    attack = PGD(0.1, steps=5, random_start=False)
    for name in ("cnn", "resnet18"):
        found = []
        losses = []
        for where, model in _both(build_model(name, data), device):
            adversarial = attack(model, images.to(where), labels.to(where))
            loss = _loss(model, adversarial, labels.to(where))
            found.append(adversarial.cpu())
            losses.append(loss)
        moved = (found[0] - found[1]).abs().mean().item() / attack.epsilon
        yield Check(f"attack, {name}: mean difference of a pixel, in epsilons", moved, 0.02)
        yield Check(f"attack, {name}: loss reached, relative", abs(losses[1] / losses[0] - 1), 2e-3)


@torch.no_grad()
def _loss(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    return nn.functional.cross_entropy(model(images), labels).item()


def _check_gain(device: torch.device) -> Check:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(256, 10, generator=generator) * 10
    labels = torch.randint(10, (256,), generator=generator)
    here = information_gain(logits, labels)
    there = information_gain(logits.to(device), labels.to(device)).cpu()
    return Check("information gain: largest difference", (here - there).abs().max().item(), 1e-5)


def _check_draw(labels: Tensor, device: torch.device) -> Iterator[Check]:
    """The top-k of a GPU finds the examples that a sort on the CPU finds, from the same keys."""
    counts = labels.bincount().numpy()
    generator = torch.Generator().manual_seed(0)
    different = 0
    for _ in range(20):
        keys = torch.randn(len(labels), generator=generator, dtype=torch.float64) * 3
        quotas = np.minimum(counts, 13)
        drawn = []
        for store in (_SortStore(labels, counts), _TopKStore(labels.to(device), counts)):
            given = keys.to(store.weights.device)
            store._keys = lambda *_, given=given: given.clone()  # type: ignore[method-assign]
            unused = torch.Generator()
            drawn.append(set(store.draw(quotas, 1.0, None, unused).tolist()))
        different += len(drawn[0] ^ drawn[1])
    yield Check("draw: examples that only one of two draws has", different, 0)
    sampler = CaseSampler(labels.to(device), 100, seed=0)
    batch = labels[sampler.draw().cpu()]
    yield Check(
        "draw on the device: how much classes differ in a batch",
        (batch.bincount().max() - batch.bincount().min()).item(),
        0,
    )


def _training(data: Data, device: torch.device, method: str) -> Training:
    """A training that draws on the CPU and begins its attack at the image."""
    sampler: UniformSampler | CaseSampler = UniformSampler(data.y_train, 64, seed=0)
    if method == "CAT":
        sampler = CaseSampler(data.y_train, 64, seed=0)
    return Training(
        build_model("cnn", data),
        data,
        sampler,
        PGD(0.1, steps=3, random_start=False),
        iterations=8,
        evaluate_every=8,
        evaluation_size=100,
        device=device,
        precision="float32",
    )


def _check_training(data: Data, device: torch.device) -> Iterator[Check]:
    for method in ("AT", "CAT"):
        ends = []
        for where in (torch.device("cpu"), device):
            training = _training(data, where, method)
            *_, record = training
            assert record.loss is not None and record.accuracy is not None
            weights = torch.cat([p.detach().flatten().cpu() for p in training.model.parameters()])
            ends.append((record.loss, record.accuracy, weights))
        (loss, accuracy, weights), (its_loss, its_accuracy, its_weights) = ends
        yield Check(f"training, {method}: last loss, relative", abs(its_loss / loss - 1), 2e-2)
        yield Check(f"training, {method}: accuracy", abs(its_accuracy - accuracy), 0.05)
        apart = (weights - its_weights).norm().item() / weights.norm().item()
        yield Check(f"training, {method}: weights, relative", apart, 1e-2)


def _check_resume(data: Data, device: torch.device) -> Check:
    """From a checkpoint in a file, the second half of a training comes out as without a break."""
    whole = _training(data, device, "CAT")
    halved = _training(data, device, "CAT")
    resumed = _training(data, device, "CAT")
    *_, expected = whole
    for _ in range(4):
        next(halved)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        torch.save(halved.state_dict(), path)
        resumed.load_state_dict(torch.load(path, weights_only=True, map_location=device))
    *_, got = resumed
    assert expected.loss is not None and got.loss is not None
    return Check("resume: last loss, relative", abs(got.loss / expected.loss - 1), 2e-2)


# ------------------------------------------------------------------ how fast is it


def median_seconds(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    """The median time of some rounds of the work, after two that are not counted."""
    times = []
    for number in range(rounds + 2):
        _wait_for(device)
        began = time.perf_counter()
        work()
        _wait_for(device)
        if number >= 2:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def random_data(size: Size) -> Data:
    """Images of noise: they cost what real ones cost."""
    generator = torch.Generator().manual_seed(0)
    channels = 3 if size.pixels == 32 else 1
    shape = (channels, size.pixels, size.pixels)
    count = size.images + size.evaluated
    images = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (count,), generator=generator)
    train = slice(size.images)
    test = slice(size.images, None)
    return Data(
        "noise", images[train], labels[train], images[test], labels[test], tuple("0123456789")
    )


def training_of(data: Data, device: torch.device, size: Size, *, compile: bool) -> Training:
    """A CAT training as the study's."""
    return Training(
        build_model(size.model, data),
        data,
        CaseSampler(data.y_train.to(device), size.sampling_number),
        PGD(8 / 255, steps=size.steps),
        evaluation_size=size.evaluated,
        device=device,
        compile=compile,
    )


Measurement = tuple[str, Callable[[], float]]


def measurements(device: torch.device, size: Size) -> Iterator[Measurement]:
    """What is measured, in its order: the name and a function that takes the time, in seconds."""
    data = random_data(size).to(device)
    eager = training_of(data, device, size, compile=False)

    def iteration() -> float:
        return median_seconds(lambda: next(eager), device, size.rounds)

    def untuned_iteration() -> float:
        eager.tunes_convolutions = False
        seconds = iteration()
        eager.tunes_convolutions = True
        return seconds

    yield "iteration", iteration
    yield "iteration, without cudnn.benchmark", untuned_iteration

    def pass_of(images: int) -> float:
        x, y = data.train(torch.arange(images, device=device))
        attack = PGD(8 / 255, steps=size.steps)

        def work() -> None:
            with eager._autocast:
                attack(eager.model, x, y, check=False)

        return median_seconds(work, device, size.rounds) / size.steps

    few = max(1, size.sampling_number // 8)
    many = 4 * size.sampling_number
    yield "step", lambda: pass_of(few)
    yield "image", lambda: pass_of(many) / many
    yield "draw", lambda: median_seconds(eager.sampler.draw, device, 5 * size.rounds)

    images, labels = data.test()
    judge = PGD(8 / 255, steps=20)

    def evaluation(precision: str) -> float:
        def work() -> None:
            robust_accuracy(eager.model, images, labels, judge, precision=precision)

        return median_seconds(work, device, 1)

    yield "evaluation in float32", lambda: evaluation("float32")
    yield "evaluation, crafted in bfloat16", lambda: evaluation("bfloat16")
    yield "judged_image", lambda: evaluation("bfloat16") / (len(labels) * (judge.steps + 2))

    def checkpoint() -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint.pt"

            def work() -> None:
                state = eager.state_dict()
                write_whole(path, lambda temporary: torch.save(state, temporary))

            return median_seconds(work, device, 1)

    yield "checkpoint", checkpoint
    if device.type == "cuda":
        yield from _compiled_measurements(data, device, size)
        yield "two at once", lambda: two_at_once(size)


def _compiled_measurements(data: Data, device: torch.device, size: Size) -> Iterator[Measurement]:
    compiled = training_of(data, device, size, compile=True)

    def compilation() -> float:
        began = time.perf_counter()
        for _ in range(3):  # the second captures a CUDA graph, the third replays it
            next(compiled)
        _wait_for(device)
        return time.perf_counter() - began

    def iteration() -> float:
        return median_seconds(lambda: next(compiled), device, size.rounds)

    yield "compilation", compilation
    yield "iteration, compiled", iteration
    yield "compiled_step", lambda: iteration() / (size.steps + 1)


def two_at_once(size: Size) -> float:
    """How many times as many iterations two processes make on the GPU together as one alone."""
    alone = sum(_iterations_of(1, size))
    together = sum(_iterations_of(2, size))
    return together / alone


def _iterations_of(processes: int, size: Size, seconds: float = 8.0) -> list[float]:
    """Iterations a second of each of some processes, all at the same time."""
    with SPAWN.Pool(processes) as pool:
        begins = time.time() + 30.0  # all have started and warmed up by then
        work = [(size, begins, seconds)] * processes
        return pool.starmap(_iterations_a_second, work)


def _iterations_a_second(size: Size, begins: float, seconds: float) -> float:
    device = torch.device("cuda")
    training = training_of(random_data(size), device, size, compile=False)
    for _ in range(5):
        next(training)
    while time.time() < begins:
        time.sleep(0.01)
    count = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(training)
        _wait_for(device)
        count += 1
    return count / (time.perf_counter() - began)


# ------------------------------------------------------------------ all of it, and what it says


def examine(device: torch.device, size: Size, say: Callable[[str], object]) -> Report:
    """Check and measure a device, and say each result as it comes.

    Raises: ValueError: the device is a GPU, and there is none.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(NO_GPU)
    began = time.monotonic()
    report = Report(machine(device))
    for what, value in report.machine.items():
        say(f"{what:<12}{value}")
    say("\nThe same numbers as on the CPU, in float32:")
    for check in checks(device):
        report.checks.append(check)
        verdict = "ok" if check.passed else "WRONG"
        say(f"  {verdict:<7}{check.what}: {check.difference:.2g} (at most {check.allowed:g})")
    say(f"\nTimes, with {size.model}, {size.sampling_number} images an iteration:")
    for name, measure in measurements(device, size):
        if time.monotonic() - began > SECONDS:
            report.left_out.append(name)
            continue
        report.measured[name] = measure()
        say(f"  {_in_words(name, report.measured[name])}")
    if report.left_out:
        say(f"  left out, as the time was up: {', '.join(report.left_out)}")
    return report


MEANINGS = {
    "step": "a forward and backward pass of few images",
    "image": "the same of one image more",
    "judged_image": "the same of one image in an evaluation",
    "compiled_step": "a compiled pass of an iteration",
}


def _in_words(name: str, value: float) -> str:
    meaning = MEANINGS.get(name, name)
    if name == "two at once":
        advice = "use --workers 2" if value > 1.1 else "leave --workers at 1"
        return f"two runs at once make {value:.2f} times as many iterations: {advice}"
    if value >= 1:
        return f"{meaning}: {value:.1f} s"
    return f"{meaning}: {value * 1e3:.3g} ms"


def study_commands(profile: str, speed: Speed) -> list[Command]:
    """The commands that run a profile's pieces, each with the time that it takes."""
    pieces = pieces_of(profile)
    return [
        command
        for piece in pieces
        if piece.trials
        for command in commands_of(piece, speed, finals_of(piece, pieces))
    ]


def time_table(profile: str, speed: Speed) -> list[str]:
    """Lines that say how long each command of a profile takes, and all of them."""
    commands = study_commands(profile, speed)
    lines = [f"  {command.seconds / 60:5.1f} min  {command.text}" for command in commands]
    total = sum(command.seconds for command in commands)
    return [*lines, f"  {total / 60:5.0f} min  all of it, one run at a time"]


def save(report: Report, path: Path = REPORT) -> None:
    """Write the report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": report.machine,
        "passed": report.passed,
        "checks": [asdict(check) for check in report.checks],
        "measured": report.measured,
        "left out": report.left_out,
        "speed": asdict(report.speed),
    }
    write_json(path, content)


def known_speed(device: torch.device, path: Path = REPORT) -> Speed | None:
    """The speed that was measured on this machine's device; None if none was, or a check failed."""
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    is_this_one = found["machine"] == machine(device)
    return Speed(**found["speed"]) if is_this_one and found["passed"] else None
