"""The compiled and hand-made parts of the attack against what torch does by itself."""

import copy
import dataclasses
import itertools
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.torch_version import TorchVersion

import catlib
from catlib.kernels import step
from catlib.kernels.convolution import fast_first_layers
from catlib.lab.runs import Trial, build_training, records_of


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
            device="cpu",
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


@pytest.fixture
def graphs(monkeypatch):
    """A function: how many graphs torch has compiled in this test. It runs each uncompiled."""
    from torch._dynamo.utils import counters

    compile = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda function, *, dynamic, mode: compile(function, dynamic=dynamic, backend="eager"),
    )
    torch.compiler.reset()
    before = counters["stats"]["unique_graphs"]
    yield lambda: counters["stats"]["unique_graphs"] - before
    torch.compiler.reset()


def linear_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 3))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("rule", ["sign", "gradient"])
def test_a_shape_needs_one_graph_whatever_the_epsilon(graphs, norm, rule):
    """12 pairs of shape and epsilon, and a second model: as many graphs as there are shapes."""
    shapes = (2, 3, 4)
    for count in shapes:
        images, labels = torch.rand(count, 1, 3, 3), torch.arange(count) % 3
        for number, epsilon in enumerate((0.1, 0.11, 0.3, 1)):
            plain = catlib.PGD(epsilon, steps=3, norm=norm, rule=rule)
            attack = dataclasses.replace(plain, compile=True)
            model = linear_model(seed=number)
            starts = [torch.Generator().manual_seed(0) for _ in range(2)]
            torch.testing.assert_close(
                attack(model, images, labels, generator=starts[0]),
                plain(model, images, labels, generator=starts[1]),
            )
    assert graphs() == len(shapes)


@pytest.mark.slow
def test_more_shapes_than_torch_compiles_by_itself(graphs):
    attack = catlib.PGD(0.1, steps=1, compile=True)
    model = linear_model()
    for count in range(1, 11):
        attack(model, torch.rand(count, 1, 3, 3), torch.zeros(count, dtype=torch.long))
    assert graphs() == 10 > torch._dynamo.config.recompile_limit


def test_a_growing_epsilon_compiles_nothing_anew(graphs):
    trial = Trial(
        iterations=6,
        epsilon_warm_up=6,
        steps=1,
        sampling_number=16,
        evaluate_every=0,
        device="cpu",
        compile=True,
    )
    training = build_training(trial)
    records = records_of(trial, training)
    next(records)
    after_the_first = graphs()
    assert after_the_first == 2  # a step of the attack, and the model in the update
    assert len(list(records)) == 5
    assert training.attack.epsilon == trial.epsilon
    assert graphs() == after_the_first


def test_a_function_is_never_silently_run_uncompiled(graphs, monkeypatch):
    """Torch's own answer to too many graphs is a warning, and uncompiled code from then on."""
    monkeypatch.setattr(step, "MOST_GRAPHS", 2)
    attack = catlib.PGD(0.1, steps=1, compile=True)
    network = step.compiled(linear_model(), torch.device("cpu"))
    images, labels = torch.rand(4, 1, 3, 3), torch.zeros(4, dtype=torch.long)
    for count in (1, 2):
        attack(linear_model(), images[:count], labels[:count])
        network(images[:count])
    with pytest.raises(RuntimeError, match="2 graphs of one function"):
        attack(linear_model(), images[:3], labels[:3])
    with pytest.raises(RuntimeError, match="2 graphs of one function"):
        network(images[:3])
    attack(linear_model(), images[:1], labels[:1])  # what is compiled stays
    assert torch._dynamo.config.recompile_limit > 2, "the setting of the process stays as it was"


def test_graphs_are_forgotten_before_torch_captures_no_more(monkeypatch):
    resets = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(True))
    monkeypatch.setattr(step, "_compiled_runs", itertools.count(1))
    for _ in range(2 * step.RUNS_BETWEEN_RESETS):
        step.begin_compiled_run()
    assert len(resets) == 2


@pytest.mark.parametrize(
    "version, in_a_thread, mode",
    [
        ("2.11.0", False, "reduce-overhead"),
        ("2.11.0+cu130", True, None),
        ("2.14.1", True, "reduce-overhead"),
    ],
)
def test_cuda_graphs_are_captured_where_torch_can(monkeypatch, version, in_a_thread, mode):
    """torch 2.11 fails an assertion in a thread of Python's, such as that of the live controls."""
    modes = []
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    monkeypatch.setattr(torch, "compile", lambda function, **options: modes.append(options["mode"]))

    def compile():
        step.compiled(len, torch.device("cuda"))

    if in_a_thread:
        thread = threading.Thread(target=compile)
        thread.start()
        thread.join()
    else:
        compile()
    assert modes == [mode]
