"""What is trained on: all images as bytes on one device; a batch is a selection by index."""

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
_DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "data" / "cache"
KEYS = ("x_train", "y_train", "x_test", "y_test")
CLASSES = {
    "digits": tuple("0123456789"),
    "mnist": tuple("0123456789"),
    "fashion_mnist": (
        "T-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "boot",
    ),
    "cifar10": (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
}


@dataclass(frozen=True)
class Data:
    """Images (n, C, H, W) uint8 and labels (n,) int64, for training and for test, on one device."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: tuple[str, ...]

    def to(self, device: torch.device | str) -> "Data":
        """The same data on another device."""
        return replace(
            self,
            x_train=self.x_train.to(device),
            y_train=self.y_train.to(device),
            x_test=self.x_test.to(device),
            y_test=self.y_test.to(device),
        )

    def train(self, indices: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Training images (B, C, H, W) float32 in [0, 1] and labels (B,), at these indices."""
        return self.x_train[indices].float().div_(255), self.y_train[indices]

    def test(self, indices: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """The same of the test images; ``data.test(slice(500))`` is the first 500 of them."""
        return self.x_test[indices].float().div_(255), self.y_test[indices]


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """The usual augmentation of CIFAR-10: a random shift of every image, and half of them mirrored.

    Args:
        images: (B, C, H, W).
        generator: on the device of the images.
        padding: the largest shift, in pixels; what comes in from outside is black.
    Returns: (B, C, H, W), new.
    """
    n, _, height, width = images.shape
    device = images.device

    def draw(high: int) -> Tensor:
        return torch.randint(high, (n, 1), generator=generator, device=device)

    down = draw(2 * padding + 1)
    right = draw(2 * padding + 1)
    mirrored = draw(2).bool()
    rows = down + torch.arange(height, device=device)  # (B, H)
    columns = right + torch.arange(width, device=device)  # (B, W)
    columns = torch.where(mirrored, columns.flip(1), columns)
    padded = torch.nn.functional.pad(images, [padding] * 4)
    image = torch.arange(n, device=device)
    crops = padded[image[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (B, H, W, C)
    return crops.permute(0, 3, 1, 2)


def data_root(root: str | Path | None = None) -> Path:
    """The folder of the datasets.

    The argument, else the environment's CATLIB_DATA, else data/cache in the repository.
    """
    folder = root or os.environ.get("CATLIB_DATA") or _DEFAULT_FOLDER
    return Path(folder).expanduser().resolve()


def load_data(name: str, root: str | Path | None = None) -> Data:
    """A dataset: "digits" (embedded, 8x8), "mnist", "fashion_mnist" or "cifar10".

    The last three are read from ``<root>/<name>.npz`` (x_train, y_train, x_test, y_test; uint8
    images, channels last). If it is not there, torchvision downloads the data, which is kept in
    that form.

    Raises:
        ValueError: an unknown name, or a file that is damaged or no such dataset.
        RuntimeError: the download failed.
    """
    if name not in CLASSES:
        raise ValueError(f"dataset is {name!r}; it must be one of {', '.join(CLASSES)}.")
    if name == "digits":
        x_train, y_train, x_test, y_test = _digits()
    else:
        x_train, y_train, x_test, y_test = _read(name, data_root(root) / f"{name}.npz")
    return Data(
        name,
        _images(x_train),
        _labels(y_train),
        _images(x_test),
        _labels(y_test),
        CLASSES[name],
    )


def _images(x: np.ndarray) -> Tensor:
    """(n, H, W) or (n, H, W, C) to (n, C, H, W)."""
    images = torch.from_numpy(x)
    channels_first = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    return channels_first.contiguous()


def _labels(y: np.ndarray) -> Tensor:
    """(n,) or (n, 1) integers to (n,) int64."""
    return torch.from_numpy(y.reshape(-1).astype(np.int64))


def _digits() -> list[np.ndarray]:
    """x_train, y_train, x_test, y_test of scikit-learn's digits, in a fixed order."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    grey = (digits.images[order] * (255 / 16)).round().astype(np.uint8)  # from 0..16 to 0..255
    labels = digits.target[order]
    train = 1437  # four fifths
    return [grey[:train], labels[:train], grey[train:], labels[train:]]


def _read(name: str, path: Path) -> list[np.ndarray]:
    """x_train, y_train, x_test, y_test of the file, which is downloaded if it does not exist."""
    if not path.exists():
        _download(name, path)
    advice = (
        f"Delete it, and load_data({name!r}) downloads it again; or put a whole copy in its place."
    )
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = [archive[key] for key in KEYS]
    except Exception as error:  # a damaged archive can raise nearly anything
        raise ValueError(f"{path} is damaged or half-written ({error}). {advice}") from error
    x_train, y_train, x_test, y_test = arrays
    for split, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        y = y.reshape(-1)
        fits = (
            x.dtype == np.uint8
            and x.ndim in (3, 4)
            and y.dtype.kind in "iu"
            and len(x) == len(y) > 0
        )
        if not fits or not 0 <= y.min() <= y.max() < 10:
            raise ValueError(
                f"{path} is not such a dataset: x_{split} {x.dtype} {x.shape}, "
                f"y_{split} {y.dtype} {y.shape}; expected uint8 (n, H, W) or (n, H, W, C) "
                f"and integer labels (n,) in 0..9. {advice}"
            )
    return arrays


def _download(name: str, path: Path) -> None:
    from torchvision import datasets

    source = {
        "mnist": datasets.MNIST,
        "fashion_mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
    }[name]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            train = source(folder, train=True, download=True)
            test = source(folder, train=False, download=True)
            whole = Path(folder) / "whole.npz"
            np.savez_compressed(
                whole,
                x_train=np.asarray(train.data, np.uint8),
                y_train=np.asarray(train.targets, np.uint8),
                x_test=np.asarray(test.data, np.uint8),
                y_test=np.asarray(test.targets, np.uint8),
            )
            os.replace(whole, path)  # at once: nobody ever reads half a file
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"{path} does not exist, and downloading {name} failed ({error}). Put {name}.npz "
            f"there, or set CATLIB_DATA to the folder that has it, or use load_data('digits'), "
            f"which needs neither."
        ) from error
