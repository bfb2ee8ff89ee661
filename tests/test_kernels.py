"""The compiled and hand-made parts of the attack against what torch does by itself."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import catlib
from catlib.kernels.convolution import fast_first_layers


def input_gradient(layer, images, slope):
    x = images.clone().requires_grad_()
    return torch.autograd.grad(layer(x), x, slope)[0]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 2},
        {"padding": 1},
        {"stride": 2, "padding": (1, 0)},
        {"dilation": 2},
        {"stride": 3, "padding": 2, "bias": False},
    ],
    ids=str,
)
def test_the_first_layer_has_torchs_gradient(channels, settings):
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, 5, (3, 4), dtype=torch.float64, **settings)
    images = torch.rand(4, channels, 11, 12, dtype=torch.float64)
    logits = layer(images)
    slope = torch.randn_like(logits)
    expected = input_gradient(layer, images, slope)
    with fast_first_layers(layer, images.device):
        assert "_conv_forward" in vars(layer)
        torch.testing.assert_close(layer(images), logits)
        torch.testing.assert_close(input_gradient(layer, images, slope), expected)
    assert type(layer) is nn.Conv2d and "_conv_forward" not in vars(layer)


class Around(nn.Module):
    """A first convolution that is used in some other way than on the images alone."""

    def __init__(self, use):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 3, 3)
        self.head = nn.Linear(3 * 9, 4)
        self.use = use

    def forward(self, x):
        return self.head(self.use(self.conv, x).flatten(1))


def weight_from_the_images(conv, x):
    """A weight that depends on the images: their gradient has a second path."""
    weight = conv.weight * x.mean()
    layer = copy.copy(conv)
    layer._parameters = {"bias": conv.bias}
    layer.weight = weight
    return layer(x)


def under_vmap(conv, x):
    return torch.func.vmap(conv)(x[:, None])[:, 0]


def under_jvp(conv, x):
    return torch.func.jvp(conv, (x,), (torch.ones_like(x),))[1] + conv(x)


def gradient_of_the_gradient(conv, x):
    (gradient,) = torch.autograd.grad(conv(x).square().sum(), x, create_graph=True)
    return conv(x + gradient)


def replaced_weight(conv, x):
    """As :func:`weight_from_the_images`, by the layer itself."""
    parameter = conv._parameters.pop("weight")
    try:
        conv.weight = parameter * x.mean()
        return conv(x)
    finally:
        del conv.weight
        conv._parameters["weight"] = parameter


@pytest.mark.parametrize(
    "use",
    [
        weight_from_the_images,
        replaced_weight,
        under_vmap,
        under_jvp,
        gradient_of_the_gradient,
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch's own, in jvp
def test_every_use_of_a_first_layer_has_torchs_gradient(use):
    model = Around(use).eval()
    images, labels = torch.rand(4, 1, 5, 5), torch.arange(4)
    attack = catlib.PGD(0.2, rule="gradient", steps=1, random_start=False)
    x = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(model(x), labels, reduction="sum"), x)
    expected = (images + slope.clamp(-0.2, 0.2)).clamp(0, 1)
    torch.testing.assert_close(attack(model, images, labels), expected)


def test_other_layers_are_left_alone():
    class Own(nn.Conv2d):
        pass

    layers = nn.Sequential(
        nn.Conv2d(16, 4, 3),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(1, 4, 3, padding="same"),
        Own(1, 4, 3),
        nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"),
    )
    before = [(type(layer), sorted(vars(layer))) for layer in layers]
    with fast_first_layers(layers, torch.device("cpu")):
        assert [(type(layer), sorted(vars(layer))) for layer in layers] == before


def test_a_failing_attack_gives_the_layer_back():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(7, 2))  # the sizes do not fit
    with pytest.raises(RuntimeError):
        catlib.pgd(model, torch.rand(2, 1, 5, 5), torch.tensor([0, 1]), epsilon=0.1, steps=1)
    assert type(model[0]) is nn.Conv2d and "_conv_forward" not in vars(model[0])


def test_the_first_layer_still_trains():
    data = catlib.load_data("digits")
    model = catlib.build_model("cnn", data)
    x, y = data.train(slice(8))
    adversarial = catlib.PGD(0.1, steps=2)(model, x, y)
    F.cross_entropy(model(adversarial), y).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_training_is_the_same_training(precision):
    """Same losses and counts; and after the first iteration nothing is compiled again."""
    from torch._dynamo.utils import counters

    data, losses, passes = catlib.load_data("digits"), {}, {}
    model = catlib.build_model("cnn", data)
    for compile in (False, True):
        training = catlib.Training(
            copy.deepcopy(model),
            data,
            catlib.CaseSampler(data.y_train, 64),
            catlib.PGD(0.1, steps=3),
            iterations=6,
            evaluate_every=2,
            evaluation_size=64,
            precision=precision,
            compile=compile,
        )
        first = next(training)
        graphs = counters["stats"]["unique_graphs"]
        records = [first, *training]
        assert counters["stats"]["unique_graphs"] == graphs
        losses[compile], passes[compile] = [record.loss for record in records], records[-1].passes
    assert losses[True] == pytest.approx(
        losses[False], rel=1e-2 if precision == "bfloat16" else 1e-4
    )
    assert passes[True] == passes[False]
