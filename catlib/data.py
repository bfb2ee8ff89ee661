"""What is trained on: images kept as bytes, whole, on one device, and cut into batches by index."""

import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
KEYS = ("x_train", "y_train", "x_test", "y_test")
CLASSES = {
    **dict.fromkeys(("digits", "mnist"), tuple("0123456789")),
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
        return replace(self, **{key: getattr(self, key).to(device) for key in KEYS})

    def train(self, indices: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Training images (B, C, H, W) float32 in [0, 1] and labels (B,), at these indices."""
        return self.x_train[indices].float().div_(255), self.y_train[indices]

    def test(self, indices: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """The same of the test images; ``data.test(slice(500))`` is the fixed subset of the first 500."""
        return self.x_test[indices].float().div_(255), self.y_test[indices]


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """The usual augmentation of CIFAR-10, on the device: every image shifted by up to ``padding`` pixels, half mirrored."""
    (n, _, height, width), device, shifts = images.shape, images.device, 2 * padding + 1
    down, right, mirror = (
        torch.randint(high, (n, 1), generator=generator, device=device)
        for high in (shifts, shifts, 2)
    )
    rows, columns = (
        down + torch.arange(height, device=device),
        right + torch.arange(width, device=device),
    )
    columns = torch.where(mirror.bool(), columns.flip(1), columns)
    padded = torch.nn.functional.pad(images, [padding] * 4)
    return padded[
        torch.arange(n, device=device)[:, None, None], :, rows[:, :, None], columns[:, None]
    ].permute(0, 3, 1, 2)


def data_root(root: str | Path | None = None) -> Path:
    """Where datasets lie: the argument, else the environment's CATLIB_DATA, else data/cache in the repository."""
    return (
        Path(root or os.environ.get("CATLIB_DATA") or ROOT / "data" / "cache")
        .expanduser()
        .resolve()
    )


def load_data(name: str, root: str | Path | None = None) -> Data:
    """A dataset: "digits" (embedded, 8x8), "mnist", "fashion_mnist" or "cifar10".

    The last three are read from ``<root>/<name>.npz`` (x_train, y_train, x_test, y_test; uint8 images, channels last). If it
    is not there, torchvision downloads the data, which is kept in that form.

    Raises: ValueError: an unknown name, or a file that is damaged or no such dataset. RuntimeError: the download failed.
    """
    if name not in CLASSES:
        raise ValueError(f"dataset is {name!r}; it must be one of {', '.join(CLASSES)}.")
    arrays = _digits() if name == "digits" else _read(name, data_root(root) / f"{name}.npz")
    x_train, x_test = (
        (x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)).contiguous()
        for x in map(torch.from_numpy, arrays[::2])
    )
    y_train, y_test = (torch.from_numpy(y.reshape(-1).astype(np.int64)) for y in arrays[1::2])
    return Data(name, x_train, y_train, x_test, y_test, CLASSES[name])


def _digits() -> list[np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x, y = (digits.images[order] * (255 / 16)).round().astype(np.uint8), digits.target[order]
    return [x[:1437], y[:1437], x[1437:], y[1437:]]


def _read(name: str, path: Path) -> list[np.ndarray]:
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
    for split, x, y in (("train", *arrays[:2]), ("test", *arrays[2:])):
        y = y.reshape(-1)
        fits = (
            x.dtype == np.uint8
            and x.ndim in (3, 4)
            and y.dtype.kind in "iu"
            and len(x) == len(y) > 0
        )
        if not fits or not 0 <= y.min() <= y.max() < 10:
            raise ValueError(
                f"{path} is not such a dataset: x_{split} {x.dtype} {x.shape}, y_{split} {y.dtype} {y.shape}; "
                f"expected uint8 (n, H, W) or (n, H, W, C) and integer labels (n,) in 0..9. {advice}"
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
            splits = [source(folder, train=train, download=True) for train in (True, False)]
            arrays = [
                np.asarray(part, np.uint8)
                for split in splits
                for part in (split.data, split.targets)
            ]
            np.savez_compressed(
                whole := Path(folder) / "whole.npz", **dict(zip(KEYS, arrays, strict=True))
            )
            os.replace(whole, path)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"{path} does not exist, and downloading {name} failed ({error}). Put {name}.npz there, or set "
            f"CATLIB_DATA to the folder that has it, or use load_data('digits'), which needs neither."
        ) from error
