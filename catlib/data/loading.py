"""Data sets by name: the four of the course, files of arrays, and folders of images."""

import os
import tempfile
from pathlib import Path

import numpy as np

from ..files import write_whole
from .arrays import channels_first, labels_of, unpack
from .dataset import Data
from .own import read_file, read_folder

_DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "data" / "cache"
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


def data_root(root: str | Path | None = None) -> Path:
    """The folder of the datasets.

    The argument, else the environment's CATLIB_DATA, else data/cache in the repository.
    """
    folder = root or os.environ.get("CATLIB_DATA") or _DEFAULT_FOLDER
    return Path(folder).expanduser().resolve()


def load_data(name: str | os.PathLike[str], root: str | Path | None = None) -> Data:
    """A data set by name.

    - "digits" is embedded: 8x8 pixels.
    - "mnist", "fashion_mnist" and "cifar10" are read from ``<root>/<name>.npz`` (x_train, y_train,
      x_test, y_test; uint8 images, channels last). If the file is not there, torchvision downloads
      the data, which are kept in that form.
    - The path of an ``.npz`` file of one's own with the same arrays, for any number of classes and
      channels: images (n, H, W), (n, H, W, C) or, with at most four channels, (n, C, H, W), uint8
      or floats in [0, 1], and labels (n,) in 0..K-1. An array ``classes`` (K,) may name them.
    - The path of a folder of images: ``train/<class>/*.png`` and ``test/<class>/*.png``, or
      ``<class>/*.png`` alone; jpg and what else torchvision knows as well. All images have one
      size. They are in colour if any of them is. Their order is random, and always the same.

    If nothing says which images are for test, a fifth of every class is, drawn at random and always
    the same. Evaluations use the first test images, so those of an .npz file should not be sorted
    by class.

    Args:
        name: one of these names, or a path, which is looked for from the working directory, then in
            ``root``.
        root: the folder of the data sets; None is the environment's CATLIB_DATA, else data/cache in
            the repository.

    Raises:
        ValueError: an unknown name, or files that are damaged or no such data set.
        RuntimeError: the download failed.
    """
    path = find_data(name, root)
    if path is not None:
        return read_folder(path) if path.is_dir() else read_file(path)
    name = str(name)
    if name == "digits":
        x_train, y_train, x_test, y_test = _digits()
    else:
        x_train, y_train, x_test, y_test = _read_known(name, known_file(name, root))
    return Data(
        name,
        channels_first(x_train),
        labels_of(y_train),
        channels_first(x_test),
        labels_of(y_test),
        CLASSES[name],
    )


def known_file(name: str, root: str | Path | None = None) -> Path:
    """Where the file of a data set of the course is, or will be once it is downloaded."""
    return data_root(root) / f"{name}.npz"


def is_here(name: str) -> bool:
    """Whether a data set of the course can be loaded without a download."""
    return name == "digits" or known_file(name).exists()


def find_data(name: str | os.PathLike[str], root: str | Path | None = None) -> Path | None:
    """The file or folder that this name of a data set stands for; None for those of the course.

    Raises: ValueError: neither such a name nor such a path, with what is allowed.
    """
    if name in CLASSES:
        return None
    given = Path(name).expanduser()
    places = [(folder / given).resolve() for folder in (Path.cwd(), data_root(root))]
    for place in places:
        is_file = place.suffix == ".npz" and place.is_file()
        if str(name) and (is_file or place.is_dir()):
            return place
    raise ValueError(
        f"dataset is {str(name)!r}; it must be one of {', '.join(CLASSES)}, or the path of an .npz "
        f"file or of a folder of images by class. There is neither at "
        f"{' nor at '.join(dict.fromkeys(map(str, places)))}."
    )


def _digits() -> list[np.ndarray]:
    """x_train, y_train, x_test, y_test of scikit-learn's digits, in a fixed order."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    grey = (digits.images[order] * (255 / 16)).round().astype(np.uint8)  # from 0..16 to 0..255
    labels = digits.target[order]
    train = 1437  # four fifths
    return [grey[:train], labels[:train], grey[train:], labels[train:]]


def _read_known(name: str, path: Path) -> list[np.ndarray]:
    """x_train, y_train, x_test, y_test of the file, which is downloaded if it does not exist."""
    if not path.exists():
        _download(name, path)
    advice = (
        f"Delete it, and load_data({name!r}) downloads it again; or put a whole copy in its place."
    )
    arrays = unpack(path, KEYS, advice)
    for part in ("train", "test"):
        x = arrays[f"x_{part}"]
        y = arrays[f"y_{part}"].reshape(-1)
        are_images = x.dtype == np.uint8 and x.ndim in (3, 4)
        are_labels = y.dtype.kind in "iu" and len(x) == len(y) > 0
        if not are_images or not are_labels or not 0 <= y.min() <= y.max() < 10:
            raise ValueError(
                f"{path} is not such a dataset: x_{part} {x.dtype} {x.shape}, "
                f"y_{part} {y.dtype} {y.shape}; expected uint8 (n, H, W) or (n, H, W, C) "
                f"and integer labels (n,) in 0..9. {advice}"
            )
    return [arrays[key] for key in KEYS]


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

        def save(temporary: Path) -> None:
            # an open file: with a path, numpy would add .npz to the temporary name
            with open(temporary, "wb") as file:
                np.savez_compressed(
                    file,
                    x_train=np.asarray(train.data, np.uint8),
                    y_train=np.asarray(train.targets, np.uint8),
                    x_test=np.asarray(test.data, np.uint8),
                    y_test=np.asarray(test.targets, np.uint8),
                )

        write_whole(path, save)
    except (OSError, RuntimeError) as error:
        raise RuntimeError(
            f"{path} does not exist, and downloading {name} failed ({error}). Put {name}.npz "
            f"there, or set CATLIB_DATA to the folder that has it, or use load_data('digits'), "
            f"which needs neither."
        ) from error
