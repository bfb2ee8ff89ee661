"""Data sets of one's own: a file of arrays, or a folder of images by class."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .arrays import channels_first, labels_of, unpack
from .dataset import Data

if TYPE_CHECKING:  # Pillow takes a moment to load
    from PIL import Image

GREY = ("1", "L", "LA")  # Pillow's modes of pictures without colour
FILE = (
    "An .npz file of data holds x_train (n, H, W), (n, H, W, C) or (n, C, H, W), uint8 or floats "
    "in [0, 1], and y_train (n,), integers in 0..K-1; it may hold x_test, y_test, and classes (K,)."
)
FOLDER = (
    "A folder of data holds train/<class>/*.png and test/<class>/*.png, or <class>/*.png alone; "
    "jpg and other formats as well."
)


def read_file(path: Path) -> Data:
    """Data from an .npz file; see load_data."""
    arrays = unpack(path, ("x_train", "y_train"), FILE, ("x_test", "y_test", "classes"))
    parts: dict[str, Tensor] = {}
    for name, array in arrays.items():
        if name.startswith("x_"):
            if array.ndim not in (3, 4) or array.dtype.kind not in "uf" or not array.size:
                raise ValueError(f"{path}: {name} is {array.dtype} {array.shape}. {FILE}")
            try:
                parts[name] = channels_first(array)
            except ValueError as error:
                raise ValueError(f"{path}: {name}: {error}") from error
        elif name.startswith("y_"):
            if array.dtype.kind not in "iu":
                raise ValueError(f"{path}: {name} is {array.dtype} {array.shape}. {FILE}")
            parts[name] = labels_of(array)
    classes = None
    if "classes" in arrays:
        if arrays["classes"].dtype.kind not in "Uiu" or arrays["classes"].ndim != 1:
            raise ValueError(f"{path}: classes are {arrays['classes'].dtype}, not names. {FILE}")
        classes = arrays["classes"].astype(str).tolist()
    try:
        return Data.from_tensors(**parts, classes=classes, name=path.stem)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no such data set: {error}") from error


def read_folder(path: Path) -> Data:
    """Data from a folder of images; see load_data."""
    has_train = (path / "train").is_dir()
    has_test = (path / "test").is_dir()
    if has_train != has_test:
        present, missing = ("train", "test") if has_train else ("test", "train")
        raise ValueError(f"{path} has a folder {present} but none of the name {missing}. {FOLDER}")
    try:
        if not has_train:
            classes = _classes(path)
            return Data.from_tensors(*_images(path, classes), classes=classes, name=path.name)
        classes = _classes(path / "train")
        unknown = sorted(set(_classes(path / "test")) - set(classes))
        if unknown:
            raise ValueError(f"test has the class {unknown[0]!r}, which train does not have.")
        x_train, y_train = _images(path / "train", classes)
        x_test, y_test = _images(path / "test", classes)
        if x_train.shape[1] != x_test.shape[1]:  # one part is grey, the other in colour
            x_train = x_train.expand(-1, 3, -1, -1).contiguous()
            x_test = x_test.expand(-1, 3, -1, -1).contiguous()
        return Data.from_tensors(x_train, y_train, x_test, y_test, classes=classes, name=path.name)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no such data set: {error} {FOLDER}") from error


def _classes(folder: Path) -> list[str]:
    """The names of the classes: the folders in it, in alphabetical order, hidden ones left out."""
    names = [each.name for each in folder.iterdir() if each.is_dir() and each.name[0] != "."]
    if len(names) < 2:
        raise ValueError(f"{folder} has {len(names)} folders of images; a class is a folder.")
    return sorted(names)


def _images(folder: Path, classes: list[str]) -> tuple[Tensor, Tensor]:
    """All images (n, C, H, W) uint8 and their labels (n,), in random order."""
    files, labels = _files(folder, classes)
    pictures = [_open(file) for file in files]
    width, height = pictures[0].size
    for file, picture in zip(files, pictures, strict=True):
        if picture.size != (width, height):
            raise ValueError(
                f"{file} has {picture.width} x {picture.height} pixels, {files[0]} has "
                f"{width} x {height}; resize all images to one size."
            )
    all_grey = all(picture.mode in GREY for picture in pictures)
    mode = "L" if all_grey else "RGB"
    arrays = [np.asarray(picture.convert(mode)) for picture in pictures]
    order = np.random.default_rng(0).permutation(len(files))
    return channels_first(np.stack(arrays)[order]), torch.tensor(labels)[torch.from_numpy(order)]


def _files(folder: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    """Every image in the folders of the classes, hidden ones left out, and its class."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

    files = []
    labels = []
    for label, name in enumerate(classes):
        if not (folder / name).is_dir():
            continue  # no image of this class for test
        found = make_dataset(str(folder), {name: label}, IMG_EXTENSIONS, allow_empty=True)
        paths = [Path(path) for path, _ in found]
        shown = [path for path in paths if not _is_hidden(path.relative_to(folder))]
        if not shown:
            raise ValueError(f"{folder / name} holds no image ({', '.join(IMG_EXTENSIONS)}).")
        files += shown
        labels += [label] * len(shown)
    return files, labels


def _open(file: Path) -> "Image.Image":
    from PIL import Image

    try:
        with Image.open(file) as opened:
            picture = opened.copy()  # reads all of it
    except Exception as error:  # a damaged image can raise nearly anything
        raise ValueError(f"{file} cannot be read as an image ({error}).") from error
    if picture.mode.startswith(("I", "F")):
        raise ValueError(
            f"{file} has pixels of mode {picture.mode}; convert it to 8 bits a channel."
        )
    return picture


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
