"""Images with what a model reads in them: the first pictures of an adversarial example."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..figures import PALETTE

BEFORE = PALETTE[7]
AFTER = PALETTE[2]
FITTING = 11  # letters above an image, in bold type of 10.5 points


def readings(
    rows: dict[str, tuple[nn.Module | None, Tensor]], labels: Tensor, classes: Sequence[str]
) -> Figure:
    """Rows of images; above each image what a model reads, and how sure it is of it.

    Args:
        rows: name of a row to the model that reads it, and images (n, C, H, W) in [0, 1] with the
            same n in every row. With None in place of the model, the images are only shown.
        labels: (n,) true classes; a wrong reading is printed in bold.
        classes: names of the classes.
    """
    across = len(labels)
    size = (1.1 * across + 0.6, 1.42 * len(rows))
    figure, axes = plt.subplots(len(rows), across, figsize=size, squeeze=False)
    for line, (name, (model, images)) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, images, strict=True):
            show(axis, image)
        if model is not None:
            _write_readings(line, model, images, labels, classes)
        line[0].set_ylabel(name, fontsize=10)
    return figure


def _write_readings(
    line: Sequence[Axes],
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
) -> None:
    with torch.no_grad():
        probability = model(images).softmax(1)
    longest = max(map(len, classes)) + len(" (100%)")
    size = min(10.5, 10.5 * FITTING / longest)
    for axis, beliefs, label in zip(line, probability, labels, strict=True):
        read = int(beliefs.argmax())
        weight = "normal" if read == label else "bold"
        text = f"{classes[read]} ({beliefs[read]:.0%})"
        axis.set_title(text, loc="center", fontsize=size, fontweight=weight)


def anatomy(
    image: Tensor,
    adversarial: Tensor,
    model: nn.Module,
    classes: Sequence[str],
    epsilon: float,
) -> Figure:
    """An image, the change, their sum, and what the model believes before and after.

    Args:
        image: (C, H, W) in [0, 1].
        adversarial: the changed image, of the same shape.
        model: images to logits.
        classes: names of the classes.
        epsilon: the change that is drawn as full white or black.
    """
    with torch.no_grad():
        before, after = model(torch.stack([image, adversarial])).softmax(1).cpu().numpy()
    figure, axes = plt.subplots(1, 4, figsize=(9.5, 2.7), width_ratios=[1, 1, 1, 1.9])
    show(axes[0], image, "image")
    show(axes[1], 0.5 + (adversarial - image) / (2 * epsilon), f"change, at most ±{epsilon:g}")
    show(axes[2], adversarial, "image + change")
    place = np.arange(len(classes))
    axes[3].bar(place - 0.2, before, 0.4, color=BEFORE, label="of the image")
    axes[3].bar(place + 0.2, after, 0.4, color=AFTER, label="of image + change")
    axes[3].set(title="what the model believes", ylabel="probability", ylim=(0, 1.28))
    axes[3].set_yticks([0, 0.5, 1])
    long_names = max(map(len, classes)) > 2
    axes[3].set_xticks(place, classes, rotation=60 if long_names else 0)
    axes[3].legend(loc="upper center", ncols=2, fontsize=9)
    return figure


def show(axis: Axes, image: Tensor, title: str = "") -> None:
    """Draw an image (C, H, W) in [0, 1], grey or in colour, without ticks."""
    pixels = image.detach().permute(1, 2, 0).squeeze().cpu().clamp(0, 1)
    axis.imshow(pixels.numpy(), vmin=0, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, loc="center", fontsize=10)
    axis.grid(False)
