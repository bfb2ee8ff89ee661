"""A data set as one value, from wherever its images come."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..checks import kind_of

SUBSETS = ("first", "spread")
TEST_SHARE = 5  # where nothing says which images are for test, a fifth of every class is


class Items(Protocol):
    """A torch Dataset of known length, or a list: pairs of an image and a label."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True)
class Data:
    """Images (n, C, H, W) and labels (n,) int64, for training and for test, on one device.

    Images are bytes (uint8) or float32 in [0, 1]; labels lie in 0..K-1, the places in ``classes``.
    Raises: TypeError, ValueError: anything else, or training and test images that differ in shape
        or type. The tensors are kept as they are, and never changed.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ValueError(f"classes are {self.classes}; there must be at least 2.")
        _check_images("x_train", self.x_train)
        _check_images("x_test", self.x_test)
        _check_labels("y_train", self.y_train, len(self.x_train), len(self.classes))
        _check_labels("y_test", self.y_test, len(self.x_test), len(self.classes))
        if (
            self.x_train.shape[1:] != self.x_test.shape[1:]
            or self.x_train.dtype != self.x_test.dtype
        ):
            raise ValueError(
                f"x_train is {kind_of(self.x_train)} and x_test is {kind_of(self.x_test)}; both "
                f"must have the same channels, height, width and type."
            )

    @classmethod
    def from_tensors(
        cls,
        x_train: Any,
        y_train: Any,
        x_test: Any = None,
        y_test: Any = None,
        *,
        classes: Sequence[str] | None = None,
        name: str = "own data",
    ) -> "Data":
        """Data from tensors or arrays of one's own.

        Args:
            x_train: (n, C, H, W) or (n, H, W), bytes (uint8) or floats in [0, 1].
            y_train: (n,) integers in 0..K-1.
            x_test: the same for test. Without it a fifth of every class is taken from the training
                images, at random, and the same whenever the labels are the same.
            y_test: the labels of ``x_test``.
            classes: K names; None numbers the classes.
            name: what the data are called in tables.
        Raises: TypeError, ValueError: what is no such data, with what to do.
        """
        if (x_test is None) != (y_test is None):
            raise ValueError("x_test and y_test belong together: give both, or neither.")
        images = _as_images("x_train", x_train)
        labels = _as_labels("y_train", y_train)
        if len(images) != len(labels):
            raise ValueError(f"x_train holds {len(images)} images, y_train {len(labels)} labels.")
        if y_test is None:
            train, test = split(labels)
            test_images = images[test]
            test_labels = labels[test]
            images = images[train]
            labels = labels[train]
        else:
            test_images = _as_images("x_test", x_test)
            test_labels = _as_labels("y_test", y_test)
        if classes is None:
            classes = _numbered(labels, test_labels)
        names = tuple(str(each) for each in classes)
        return cls(name, images, labels, test_images, test_labels, names)

    @classmethod
    def from_dataset(
        cls,
        train: Items,
        test: Items | None = None,
        *,
        classes: Sequence[str] | None = None,
        name: str = "own data",
    ) -> "Data":
        """Data from a torch Dataset, whose items are pairs of an image and a label.

        Args:
            train: of known length. An image is a tensor (C, H, W) or (H, W), or what NumPy reads as
                an array (H, W, C) or (H, W), as a PIL image; all have one shape. Every item is read
                once, so a random transformation is frozen.
            test: the same for test; without it a fifth of every class of ``train`` is taken.
            classes: K names; None asks ``train.classes``, which torchvision's data sets have.
            name: what the data are called in tables.
        Raises: TypeError, ValueError: what is no such data, with what to do.
        """
        if classes is None:
            classes = getattr(train, "classes", None)
        x_train, y_train = _stacked("train", train)
        if test is None:
            return cls.from_tensors(x_train, y_train, classes=classes, name=name)
        x_test, y_test = _stacked("test", test)
        return cls.from_tensors(x_train, y_train, x_test, y_test, classes=classes, name=name)

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
        return as_floats(self.x_train[indices]), self.y_train[indices]

    def test(self, indices: Tensor | slice = slice(None)) -> tuple[Tensor, Tensor]:
        """The same of the test images; ``data.test(slice(500))`` is the first 500 of them."""
        return as_floats(self.x_test[indices]), self.y_test[indices]


def as_floats(images: Tensor) -> Tensor:
    """Bytes, or floats in [0, 1], to float32 in [0, 1], in memory of its own."""
    if images.dtype == torch.uint8:
        return images.float().div_(255)
    return images.to(torch.float32, copy=True)


def subset(labels: Tensor, count: int | None, which: str = "first") -> Tensor | slice:
    """Which examples stand for a data set: an index of ``count`` of them, the same every time.

    Args:
        labels: (n,), of the whole data set.
        count: how many; None, or more than there are, is all of them.
        which: "first", the first so many; or "spread", evenly over the classes, and within a class
            over its images from the first to the last. A class then has its share of the subset, to
            one image. The first images of a data set may be easier than the others, as in MNIST.

    Raises: ValueError: another word for ``which``.
    """
    if which not in SUBSETS:
        raise ValueError(f"the subset is {which!r}; it must be one of {', '.join(SUBSETS)}.")
    n = len(labels)
    if which == "first" or count is None or count >= n:
        return slice(count)
    class_by_class = labels.argsort(stable=True)
    # the middles of ``count`` equal stretches of this order
    places = (2 * torch.arange(count, device=labels.device) + 1) * n // (2 * count)
    return class_by_class[places].sort().values


def split(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Indices for training and for test, in random order: a fifth of every class for test.

    Raises: ValueError: a class of one image.
    """
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    shuffled = labels[order]
    for_test = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (shuffled == label).nonzero().flatten()
        if len(members) < 2:
            raise ValueError(
                f"class {label} has one image, so that it cannot be split into training and test "
                f"images; add images, or say which are for test."
            )
        for_test[members[: max(1, len(members) // TEST_SHARE)]] = True
    return order[~for_test], order[for_test]


def _numbered(labels: Tensor, test_labels: Tensor) -> list[str]:
    """The classes "0", "1", ... up to the largest label."""
    largest = max(int(labels.max()), int(test_labels.max()))
    smallest = min(int(labels.min()), int(test_labels.min()))
    if smallest > 0:
        raise ValueError(
            f"labels go from {smallest} to {largest}, and none is 0; number the classes 0..K-1, as "
            f"labels - {smallest} does, or name all of them with classes=[...]."
        )
    if largest >= len(labels):
        raise ValueError(
            f"a label is {largest}, with {len(labels)} training images; number the classes 0..K-1."
        )
    return [str(number) for number in range(largest + 1)]


def _check_images(name: str, images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(
            f"{name} is a {type(images).__name__}; it must be a tensor (Data.from_tensors takes "
            f"arrays, too)."
        )
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"{name} is {kind_of(images)}; it must be (n, C, H, W), with at least one image."
        )
    _, channels, height, width = images.shape
    if width <= 4 < channels and channels == height:
        raise ValueError(
            f"{name} is {kind_of(images)}, which looks like (n, H, W, C); it must be (n, C, H, W): "
            f"use x.permute(0, 3, 1, 2)."
        )
    if images.dtype not in (torch.uint8, torch.float32):
        raise TypeError(
            f"{name} is {kind_of(images)}; images must be uint8, or float32 in [0, 1] "
            f"(Data.from_tensors takes other floats, too)."
        )
    if images.dtype == torch.float32:
        low, high = (value.item() for value in images.aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"{name} goes from {low:.8g} to {high:.8g}; floats must lie in [0, 1]. For 0 to "
                f"255 use bytes (x.to(torch.uint8)); normalise inside the model."
            )


def _check_labels(name: str, labels: Tensor, n: int, classes: int) -> None:
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = kind_of(labels)
        raise TypeError(
            f"{name} is {kind}; labels must be an int64 tensor (labels.long(); Data.from_tensors "
            f"takes other integers, too)."
        )
    if labels.shape != (n,):
        raise ValueError(f"{name} is {kind_of(labels)}; for {n} images it must be ({n},).")
    low, high = (int(value) for value in labels.aminmax())
    if not 0 <= low <= high < classes:
        raise ValueError(
            f"{name} goes from {low} to {high}; for {classes} classes labels must lie in "
            f"0..{classes - 1}."
        )


def _as_images(name: str, images: Any) -> Tensor:
    """(n, H, W) or (n, C, H, W), of bytes or any floats, to (n, C, H, W) uint8 or float32."""
    tensor = torch.as_tensor(images)
    if tensor.ndim == 3:
        tensor = tensor.unsqueeze(1)
    if tensor.is_floating_point():
        tensor = tensor.to(torch.float32)
    if tensor.dtype not in (torch.uint8, torch.float32):
        raise TypeError(
            f"{name} is {kind_of(tensor)}; images must be bytes (uint8) or floats in [0, 1]."
        )
    return tensor


def _as_labels(name: str, labels: Any) -> Tensor:
    """(n,) or (n, 1) integers to (n,) int64."""
    tensor = torch.as_tensor(labels)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} is {kind_of(tensor)}; labels must be integers.")
    if tensor.ndim == 2 and tensor.shape[1] == 1:
        tensor = tensor.squeeze(1)
    if tensor.ndim != 1 or len(tensor) == 0:
        raise ValueError(f"{name} is {kind_of(tensor)}; labels must be (n,), n > 0.")
    tensor = tensor.long()
    if tensor.min() < 0:
        raise ValueError(f"{name} has the label {tensor.min()}; labels must lie in 0..K-1.")
    return tensor


def _stacked(name: str, dataset: Items) -> tuple[Tensor, Tensor]:
    """All images (n, C, H, W) and all labels (n,) of a torch Dataset."""
    try:
        n = len(dataset)
    except TypeError as error:
        raise TypeError(
            f"{name} is a {type(dataset).__name__} without a length; make a list of its items."
        ) from error
    if not hasattr(dataset, "__getitem__"):
        raise TypeError(
            f"{name} is a {type(dataset).__name__}, whose items have no numbers; give a data set, "
            "such as a DataLoader's .dataset, or a list of its items."
        )
    images: list[Tensor] = []
    labels: list[int] = []
    for index in range(n):
        item = dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise TypeError(
                f"item {index} of {name} is a {type(item).__name__}; it must be a pair of an image "
                f"and a label."
            )
        image = _as_image(item[0])
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"image {index} of {name} is {tuple(image.shape)}, the first one "
                f"{tuple(images[0].shape)}; all must have one shape: add a transformation that "
                f"resizes them."
            )
        images.append(image)
        labels.append(_as_label(f"the label of item {index} of {name}", item[1]))
    if not images:
        raise ValueError(f"{name} has no items.")
    return torch.stack(images), torch.tensor(labels)


def _as_label(what: str, label: Any) -> int:
    """The label as an int, from whatever holds one integer."""
    value = label.tolist() if hasattr(label, "tolist") else label
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{what} is {value!r}; labels must be integers.")
    return int(value)


def _as_image(image: Any) -> Tensor:
    """(C, H, W) from a tensor, or from a PIL image or an array with channels last."""
    if isinstance(image, Tensor):
        return image if image.ndim == 3 else image.unsqueeze(0)
    array = torch.from_numpy(np.array(image))
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] > 4:
        raise ValueError(
            f"an image is an array of shape {tuple(array.shape)}, which looks like (C, H, W); an "
            "array must be (H, W, C): give the image as a tensor, torch.from_numpy(image)."
        )
    return array.permute(2, 0, 1) if array.ndim == 3 else array.unsqueeze(0)
