"""From data to a robust model and its report, in one command: `catlib train`.

    catlib train --data digits --model cnn --epsilon 0.1 --passes 200000

One run under a guard, whose settings are a recipe of recipes.toml. Its folder has train.json (what
was asked for, and the settings that followed), the run itself, model.pt (the weights that were most
robust on held-out training images), report.txt and report.json (catlib.lab.judge).
"""

import json
import math
import sys
import time
import tomllib
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from catlib import Data, Record, Training, build_model

from ..checks import check_count
from ..files import write_whole
from .batch.engine import Failure, in_words
from .batch.units import check_folder, from_anywhere
from .judge import Report, judge, load_named, load_weights, read_epsilon
from .runs import (
    Trial,
    build_training,
    is_undone,
    records_of,
    run,
    save_if_best,
    write_json,
)
from .study.plan import make_trial

RECIPES = Path(__file__).with_name("recipes.toml")
LARGEST_VALIDATION = 1000  # images; a robust accuracy is then known to three points
VALIDATION_SHARE = 10  # one training image in so many is held out
MOST_CHECKS = 20  # evaluations on the way
CHECKS_SHARE = 0.2  # of all passes, at most so many for them
CHECK_STEPS = 20  # of the attack of an evaluation
# for the accuracy an image as it is; under attack as it is once more, the steps, and where they end
CHECK_PASSES = 1 + CHECK_STEPS + 2
FEWEST_ITERATIONS = 10
RECALIBRATE = 512  # images for the statistics of batch norm
MEASURED_SECONDS = 5.0  # for the speed, where the time is given
WARM_UP = 2  # iterations that are not measured
NEWS_SECONDS = 30.0  # between two lines about the progress
FOLDER = Path("runs/train")


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        data: a name, or the absolute path of data of one's own.
        model: a name, or "module:function".
        epsilon: radius of the attack in the linf ball, in units of images in [0, 1].
        passes: images through the network, forward and backward, in training and its checks; or
        minutes: how long that may take. One of the two is None.
        seed: of the initial weights, the draws and the random starts.
        device: "auto", "cpu" or "cuda".
    """

    data: str
    model: str
    epsilon: float
    passes: int | None
    minutes: float | None
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if (self.passes is None) == (self.minutes is None):
            raise ValueError(
                "say how much to train: --passes, such as 2e6 (images through the network), or "
                "--minutes, one of the two."
            )
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ValueError(f"--minutes is {self.minutes:g}; it must be above 0, such as 10.")

    @property
    def name(self) -> str:
        """Of its folder, where none is given."""
        data = Path(self.data).stem
        model = self.model.replace(":", "-")
        return f"{data}-{model}-eps{self.epsilon:.4g}-s{self.seed}"


def read_passes(text: str) -> int:
    """A number of passes, as 2000000 or 2e6.

    Raises: ValueError: no such number.
    """
    try:
        passes = float(text)
    except ValueError:
        passes = math.nan
    if not 1 <= passes < math.inf:
        raise ValueError(f"--passes is {text!r}; it must be a number of at least 1, such as 2e6.")
    return round(passes)


@lru_cache
def recipes() -> dict[str, dict[str, Any]]:
    """What recipes.toml says: "about", "source" and "settings" of each recipe."""
    return tomllib.loads(RECIPES.read_text(encoding="utf-8"))


def recipe_for(data: Data) -> str:
    """The name of the recipe for these images."""
    return "grey" if data.x_train.shape[1] == 1 else "colour"


def trial_for(request: Request, data: Data, passes: int) -> Trial:
    """The run that a request asks for.

    Args:
        request: what was asked for.
        data: its data.
        passes: the budget, of which at most a fifth goes into checks on held-out images.

    Raises: ValueError: too few passes for one iteration, or too few images.
    """
    settings = dict(recipes()[recipe_for(data)]["settings"])
    n = len(data.y_train)
    held_out = min(LARGEST_VALIDATION, n // VALIDATION_SHARE)
    if held_out < 1:
        raise ValueError(
            f"{request.data} has {n} training images; at least {VALIDATION_SHARE} are needed, as "
            "one in so many is held out to choose the best weights by."
        )
    settings["sampling_number"] = min(settings["sampling_number"], n - held_out)
    a_check = held_out * CHECK_PASSES
    checks = max(1, min(MOST_CHECKS, int(CHECKS_SHARE * passes / a_check)))
    spent_on_checks = min(checks * a_check, int(CHECKS_SHARE * passes))
    if _has_batch_norm(build_model(request.model, data, seed=request.seed)):
        settings["recalibrate"] = RECALIBRATE
    settings |= {
        "dataset": request.data,
        "model": request.model,
        "epsilon": request.epsilon,
        "seed": request.seed,
        "device": request.device,
        "guard": True,
        "passes": passes - spent_on_checks,
        "validation_size": held_out,
        "evaluation_size": held_out,
        "evaluation_steps": CHECK_STEPS,
        "evaluations": checks,
    }
    trial = make_trial(settings, {})
    assert trial.iterations is not None, "a budget makes a number of iterations"
    if trial.iterations < FEWEST_ITERATIONS:
        raise ValueError(
            f"{passes} passes are {trial.iterations} iterations of {trial.sampling_number} images; "
            f"at least {FEWEST_ITERATIONS} are needed to learn anything. Give more."
        )
    return trial


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def measured_speed(trial: Trial, seconds: float) -> float:
    """Passes a second of a trial's training on this machine, by a training that is thrown away."""
    endless = replace(trial, iterations=10**6, evaluate_every=0, guard=False)
    training = build_training(endless)
    began = time.perf_counter()
    passes = 0
    for record in records_of(endless, training):
        if record.iteration == WARM_UP:
            _finish_work(training)
            began = time.perf_counter()
            passes = record.passes
        elif record.iteration > WARM_UP and time.perf_counter() - began >= seconds:
            break
    _finish_work(training)
    return (training.passes - passes) / (time.perf_counter() - began)


def _finish_work(training: Training) -> None:
    """A GPU works on while this process goes on."""
    if training.device.type == "cuda":
        torch.cuda.synchronize(training.device)


# ------------------------------------------------------------------ the command


def train_command(options: Any) -> int:
    """Train as the command line asks, judge what came out, and say where it is.

    Args:
        options: has the values of ``--data``, ``--model``, ``--epsilon`` and ``--passes`` (texts),
            ``--minutes``, ``--out`` (a path or None), ``--seed``, ``--device``, ``--autoattack``,
            ``--images`` and ``--if-code-changed``.

    Returns: the exit status.

    Raises: ValueError: an argument that cannot be used. Failure: training diverged.
    """
    check_count("autoattack", options.autoattack, at_least=0)
    if options.images is not None:
        check_count("images", options.images, at_least=1)
    data = load_named(options.data)
    request = Request(
        data=from_anywhere(options.data),
        model=options.model,
        epsilon=read_epsilon(options.epsilon),
        passes=None if options.passes is None else read_passes(options.passes),
        minutes=options.minutes,
        seed=options.seed,
        device=options.device,
    )
    if not request.epsilon > 0:
        raise ValueError(f"epsilon is {request.epsilon:g}; it must be above 0, in units of [0, 1].")
    out = Path(options.out) if options.out is not None else FOLDER / request.name
    trial = plan_of(request, data, out)
    train(trial, out, if_code_changed=options.if_code_changed)
    report = judged(request, trial, out, autoattack=options.autoattack, images=options.images)
    print(report)
    print(where_it_is(out))
    return 0


def plan_of(request: Request, data: Data, out: Path) -> Trial:
    """The run for a request: that of the folder's train.json, or a new one, which is kept there.

    A speed that was measured is thus measured once, and a training that goes on is the same.

    Raises: ValueError: the folder has what another request asked for.
    """
    path = out / "train.json"
    if path.exists():
        before, trial = read_plan(path)
        for name, value in asdict(before).items():
            asked = getattr(request, name)
            if asked != value:
                raise ValueError(
                    f"{out} has a training with {name} {value!r}; this one has {asked!r}. "
                    "Give another folder with --out, or delete that one."
                )
        return trial
    passes = request.passes
    trial_for(request, data, passes or 10**9)  # what cannot be used is said first
    check_folder(out)
    speed = None
    if passes is None:
        assert request.minutes is not None, "one of the two is given"
        print(f"Measuring the speed for {MEASURED_SECONDS:g} s ...", flush=True)
        speed = measured_speed(trial_for(request, data, 10**9), MEASURED_SECONDS)
        passes = int(60 * request.minutes * speed)
        print(f"{speed:,.0f} passes/s: {passes:,} passes in {request.minutes:g} min", flush=True)
    trial = trial_for(request, data, passes)
    build_training(trial)  # what cannot be trained is said before the plan is kept
    name = recipe_for(data)
    recipe = recipes()[name]
    print(f"Recipe {name}: {recipe['about']}.\n  By {recipe['source']}.", flush=True)
    write_json(
        path,
        {
            "request": asdict(request),
            "passes": passes,
            "passes_a_second": speed,
            "recipe": name,
            "source": recipe["source"],
            "trial": asdict(trial),
        },
    )
    return trial


def read_plan(path: Path) -> tuple[Request, Trial]:
    """What a train.json says.

    Raises: ValueError: it is damaged.
    """
    try:
        content = json.loads(path.read_text())
        return Request(**content["request"]), Trial(**content["trial"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}). Delete its folder to train anew."
        ) from error


def train(trial: Trial, out: Path, *, if_code_changed: str = "refuse") -> None:
    """Run the trial in a folder to its end, and write the best weights to its model.pt.

    A model.pt and a report of a training that is run anew are deleted.

    Raises: ValueError: see :func:`run`. Failure: training diverged.
    """
    folder = out / trial.id
    news = _News(trial)

    def observe(training: Training, record: Record) -> None:
        if news.first is None:
            for name in ("model.pt", "report.txt", "report.json"):
                (out / name).unlink(missing_ok=True)
        save_if_best(training, record, folder / "best.pt")
        news.tell(training, record)

    try:
        run(trial, out, observe=observe, if_code_changed=if_code_changed)
    except FloatingPointError as error:
        raise Failure(
            f"{error} Give another --seed or a smaller --epsilon, or lower learning_rate and use "
            "`catlib batch trial`."
        ) from error
    if (out / "model.pt").exists():
        print(f"The training in {out} is done.", flush=True)
        return
    best = torch.load(folder / "best.pt", weights_only=True)
    training = build_training(trial)
    training.model.load_state_dict(best["model"])
    # with the statistics of batch norm by which it was chosen
    weights = training.judged_model().state_dict()
    write_whole(out / "model.pt", lambda temporary: torch.save(weights, temporary))


class _News:
    """Lines about the progress: at every check, and from time to time."""

    def __init__(self, trial: Trial):
        assert trial.iterations is not None, "a budget makes a number of iterations"
        self.iterations = trial.iterations
        self.began = time.monotonic()
        self.told = self.began
        self.first: int | None = None  # the iteration at which this process began

    def tell(self, training: Training, record: Record) -> None:
        now = time.monotonic()
        if self.first is None:
            self.first = record.iteration - 1
            if self.first:
                print(f"Goes on after iteration {self.first}.", flush=True)
        if is_undone(record, training):
            print(
                f"Training collapsed at iteration {record.iteration}; back to iteration "
                f"{training.iteration}, with a milder attack.",
                flush=True,
            )
        elif record.accuracy is not None or now - self.told >= NEWS_SECONDS:
            self.told = now
            print(f"{self._place(record, now)}{_found(record)}", flush=True)

    def _place(self, record: Record, now: float) -> str:
        assert self.first is not None
        made = max(1, record.iteration - self.first)
        left = (now - self.began) / made * (self.iterations - record.iteration)
        return f"iteration {record.iteration} of {self.iterations}, about {in_words(left)} left"


def _found(record: Record) -> str:
    if record.accuracy is None or record.robust_accuracy is None:
        return ""
    return f": {record.accuracy:.1%} right, {record.robust_accuracy:.1%} under attack (held out)"


def judged(
    request: Request, trial: Trial, out: Path, *, autoattack: int, images: int | None
) -> str:
    """The judge's report of the model in a folder, as text.

    It is kept beside the model, and made anew if other ``images`` or ``autoattack`` are asked for.
    """
    text = out / "report.txt"
    asked = {"images": images, "autoattack": autoattack}
    if text.exists() and _asked_before(out / "report.json") == asked:
        return text.read_text(encoding="utf-8").rstrip()
    print("Judging the best model on the test images ...", flush=True)
    report: Report = judge(
        request.model,
        request.data,
        epsilon=request.epsilon,
        weights=str(out / "model.pt"),
        images=images,
        autoattack=autoattack,
        progress=sys.stderr.isatty(),  # a bar would fill a file with its lines
    )
    text.unlink(missing_ok=True)  # an older one must not stand beside the new report.json
    write_json(out / "report.json", {**json.loads(report.to_json()), "asked": asked})
    write_whole(text, f"{report}\n".encode())
    return str(report)


def _asked_before(path: Path) -> Any:
    """What a report.json was asked to measure; None if there is none, or it does not say."""
    try:
        return json.loads(path.read_text()).get("asked")
    except (OSError, ValueError, AttributeError):
        return None


def where_it_is(out: Path) -> str:
    """Where the model is, and how to load it."""
    return (
        f"\nThe model is {out / 'model.pt'}, its report {out / 'report.txt'}. To use it:\n\n"
        "    from catlib.lab.train import load_model\n"
        f"    model = load_model({str(out)!r})\n"
        "    logits = model(images)  # images (n, C, H, W), float in [0, 1]\n"
    )


def load_model(folder: str | Path) -> nn.Module:
    """The model that `catlib train` left in a folder, in eval mode, on the CPU.

    Args:
        folder: its ``--out``.

    Raises: ValueError: there is no such model, or its data or its module are not found.
    """
    folder = Path(folder)
    path = folder / "train.json"
    if not path.exists() or not (folder / "model.pt").exists():
        raise ValueError(
            f"{folder} has no model of `catlib train`: it lacks train.json or model.pt. Give the "
            "folder of its --out, once the training is done."
        )
    request, trial = read_plan(path)
    model = build_model(request.model, load_named(request.data), width=trial.width)
    load_weights(model, folder / "model.pt")
    return model.eval()
