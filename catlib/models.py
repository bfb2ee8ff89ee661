"""What is trained: two classifiers that take images in [0, 1] and normalise them inside.

A model of one's own is named ``module:function`` wherever one of these is.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_count
from .data import Data
from .data.dataset import as_floats
from .own import own_model

MODELS = ("cnn", "resnet18")


class Normalize(nn.Module):
    """(x - mean) / std for each channel of x (B, C, H, W); mean and std are (C,).

    It is the first layer of every model, so that no attack sees normalised units.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__()
        self.register_buffer("mean", mean.view(-1, 1, 1))
        self.register_buffer("std", std.view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def build_model(name: str, data: Data, *, seed: int = 0, width: int | None = None) -> nn.Module:
    """A new classifier for these data: images (B, C, H, W) in [0, 1] to logits (B, K), on the CPU.

    Args:
        name: "cnn", two strided convolutions and two linear layers; or "resnet18", torchvision's
            (He et al., CVPR 2016), whose first layers are one 3x3 convolution without pooling, as
            images of 28 and 32 pixels need; or "module:function", a model of your own: the
            function is called with ``data`` and returns the model. Its module may lie in the
            current folder.
        data: gives the number of classes, the size of an image, and the mean and standard deviation
            of each channel.
        seed: of the initial weights; torch's global random state is left alone.
        width: of "resnet18" alone: channels of its first convolution, of which the four groups of
            layers have 1, 2, 4 and 8 times as many. None is 64, the published network; 16 is a slim
            one with a sixteenth of its weights, for a few CPU cores; 8 is the least.
    Raises: ValueError: an unknown name, images too small for the cnn, a width where there is none
        to choose, or a model of your own that cannot be used; the message says what is wrong.
    """
    check_width(name, width)
    if isinstance(name, str) and ":" in name:
        return own_model(name, data, seed)
    if name not in MODELS:
        raise ValueError(
            f"model is {name!r}; it must be one of {', '.join(MODELS)}, "
            "or module:function for a model of your own."
        )
    _, channels, rows, columns = data.x_train.shape
    if name == "cnn" and min(rows, columns) < 4:
        raise ValueError(
            f"the images are {rows} x {columns} pixels; the cnn halves them twice and needs 4 x 4."
        )
    # some thousand images, evenly spaced, give mean and deviation to three digits
    sample = as_floats(data.x_train[:: max(1, len(data.x_train) // 5000)].cpu())
    std = sample.std((0, 2, 3))
    std = torch.where(std > 0, std, 1)  # a channel that is the same everywhere is only shifted
    normalize = Normalize(sample.mean((0, 2, 3)), std)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "cnn":
            network = _cnn(channels, rows, columns, len(data.classes))
        else:
            network = _resnet18(channels, len(data.classes), 64 if width is None else width)
    return nn.Sequential(normalize, network)


# With fewer channels the weights' gradient of a strided 1x1 convolution is wrong and overwrites the
# memory beside it on a processor without AVX-512 (github.com/uxlfoundation/oneDNN/issues/6035).
SLIMMEST = 8


def check_width(name: str, width: int | None) -> None:
    """Raise ValueError if a model of this name cannot have this width."""
    if width is None:
        return
    check_count("width", width, at_least=SLIMMEST)
    if name != "resnet18":
        raise ValueError(
            f"width is {width} and model is {name!r}; only resnet18 has a width to choose. "
            "Leave it out (None)."
        )


def _cnn(channels: int, height: int, width: int, classes: int) -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(channels, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )
    for layer in network:
        # with torch's own initial weights, which are smaller, AT often stays at chance
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return network


def _resnet18(channels: int, classes: int, width: int) -> nn.Module:
    from torchvision.models import resnet18

    network = resnet18(num_classes=classes)
    if width != 64:
        _set_width(network, width, classes)
    network.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    # Faster on every device. The cnn gains from it on a GPU or compiled only: see Training.
    return network.to(memory_format=torch.channels_last)


def _set_width(network: Any, width: int, classes: int) -> None:
    """Give torchvision's ResNet-18 new layers with another number of channels.

    Their initial weights are drawn as torchvision draws them (He et al., ICCV 2015, fan out).
    """
    from torchvision.models.resnet import BasicBlock

    network.bn1 = nn.BatchNorm2d(width)
    network.inplanes = width
    for group in range(4):
        layer = network._make_layer(
            BasicBlock, width * 2**group, blocks=2, stride=1 if group == 0 else 2
        )
        for module in layer.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        setattr(network, f"layer{group + 1}", layer)
    network.fc = nn.Linear(8 * width, classes)
