"""Two models that were trained beforehand on MNIST, so that lessons can look at them at once.

    model = trained_model("mnist-cat")       # by CAT; "mnist-at" is by AT, all else the same

They lie in trained/, in half precision; trained/models.toml says how each was trained and how
robust it is. ``catlib trained`` trains them anew.
"""

import hashlib
import io
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from catlib import PGD, Data, accuracy, build_model, robust_accuracy

from ..data import is_here
from ..files import write_whole
from .runs import Trial, build_training, records_of, revision

FOLDER = Path(__file__).with_name("trained")
LIST = "models.toml"
SETTINGS: dict[str, Any] = {
    "dataset": "mnist",
    "epsilon": 0.3,
    "epsilon_warm_up": 720,
    "steps": 5,
    "optimizer": "adam",
    "learning_rate": 2e-3,
    "schedule": "cyclic",
    "iterations": 2400,
    "sampling_number": 64,
    "evaluate_every": 0,
    "device": "cpu",
}
TRIALS = {
    "mnist-at": Trial(method="AT", **SETTINGS),
    "mnist-cat": Trial(method="CAT", **SETTINGS),
}
JUDGE_STEPS = 20


def described(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """What is known of each model, by its name.

    That is the ``sha256`` of its file, the ``revision`` of the code and the version of ``torch``
    that trained it, ``passes`` of training, and, on all test images, ``accuracy`` and
    ``robust_accuracy`` under PGD-20.
    """
    return tomllib.loads((folder / LIST).read_text(encoding="utf-8"))


def mnist_is_found() -> bool:
    """Whether the images are there for which the models were trained; they are not fetched."""
    return is_here("mnist")


def trained_model(name: str, folder: Path = FOLDER) -> nn.Module:
    """A trained model in evaluation mode, on the CPU. It takes MNIST's images, (B, 1, 28, 28).

    Args:
        name: "mnist-at" or "mnist-cat".
        folder: where the models lie.

    Raises: ValueError: there is no such model, or its file is not the one that was committed.
    """
    if name not in TRIALS:
        raise ValueError(f"there is no model {name!r}; choose one of {', '.join(TRIALS)}.")
    path = folder / f"{name}.pt"
    content = path.read_bytes()
    expected = described(folder)[name]["sha256"]
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path} has the SHA-256 {found[:12]}..., not {expected[:12]}... as {LIST} says: it is "
            "damaged or was replaced. Take it from the repository again, or run `catlib trained`."
        )
    model = build_model(TRIALS[name].model, _like_mnist())
    halves = torch.load(io.BytesIO(content), weights_only=True)
    model.load_state_dict({key: value.float() for key, value in halves.items()})
    return model.eval()


def _like_mnist() -> Data:
    """Images of MNIST's shape, one a class; the weights bring their own mean and deviation."""
    images = torch.zeros(10, 1, 28, 28)
    labels = torch.arange(10)
    return Data("mnist", images, labels, images, labels, tuple("0123456789"))


def train_models(folder: Path = FOLDER) -> None:
    """Train both models, judge them, and write them with :data:`LIST`; takes some minutes.

    Raises: ValueError: MNIST is not found, or another reason why a trial cannot run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = ["# Written by `catlib trained`: the models of this folder, and how robust they are.\n"]
    for name, trial in TRIALS.items():
        content, facts = _train(trial)
        write_whole(folder / f"{name}.pt", content)
        lines = [f"[{name}]", f'sha256 = "{hashlib.sha256(content).hexdigest()}"']
        lines += [f'revision = "{revision()}"', f'torch = "{version("torch")}"']
        lines += [f"{key} = {value}" for key, value in facts.items()]
        parts.append("\n".join(lines) + "\n")
    write_whole(folder / LIST, "\n".join(parts).encode())


def _train(trial: Trial) -> tuple[bytes, dict[str, float]]:
    """The file of a trained model, and what is measured of what the file holds."""
    training = build_training(trial)
    for _ in records_of(trial, training):
        pass
    halves = {key: value.half() for key, value in training.model.state_dict().items()}
    training.model.load_state_dict(halves)  # judged as it is saved
    file = io.BytesIO()
    torch.save(halves, file)
    model = training.model.eval()
    images, labels = training.data.test(slice(None))
    attack = PGD(trial.epsilon, steps=JUDGE_STEPS)
    facts = {
        "passes": training.passes,
        "accuracy": accuracy(model, images, labels),
        "robust_accuracy": robust_accuracy(model, images, labels, attack),
    }
    return file.getvalue(), facts
