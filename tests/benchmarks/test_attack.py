"""Rows 1 and 2, and what each trick of the attack brings."""

import copy

import peers
import pytest
import torch
from measure import SideBySide, plain_format
from torch.utils.flop_counter import FlopCounterMode

import catlib
from catlib.kernels import convolution

pytestmark = pytest.mark.benchmark
SETTINGS = {"epsilon": 0.2, "step_size": 0.02, "steps": 20}


def seeded(device="cpu"):
    return torch.Generator(device).manual_seed(0)


def robust(model, adversarial, labels):
    with torch.no_grad():
        return (model(adversarial).argmax(1) == labels).double().mean().item()


def affine(model):
    """A copy whose batch norms, in eval mode, are one multiplication and one addition."""

    class Affine(torch.nn.Module):
        def __init__(self, norm):
            super().__init__()
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            self.scale = scale.detach().view(1, -1, 1, 1)
            self.shift = (norm.bias - norm.running_mean * scale).detach().view(1, -1, 1, 1)

        def forward(self, x):
            return torch.addcmul(self.shift, x, self.scale)

    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.BatchNorm2d):
                setattr(module, name, Affine(child))
    return model


def as_torch_has_it(run):
    """The same without our own gradient through the first layer."""

    def without():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(convolution, "FEW", 0)
            return run()

    return without


def in_parts(attack, model, x, y, size):
    return torch.cat(
        [
            attack(model, a, b, generator=seeded())
            for a, b in zip(x.split(size), y.split(size), strict=True)
        ]
    )


def test_cnn(benchmark, note, only_cpu, mnist, robust_cnn):
    x, y = mnist.test(slice(128))
    plain, last = (
        plain_format(copy.deepcopy(robust_cnn)),
        copy.deepcopy(robust_cnn).to(memory_format=torch.channels_last),
    )
    frozen = copy.deepcopy(plain).requires_grad_(False)
    network = torch.compile(copy.deepcopy(last), dynamic=False)
    attack, compiled = catlib.PGD(**SETTINGS), catlib.PGD(**SETTINGS, compile=True)

    def in_bfloat16():
        with torch.autocast("cpu", torch.bfloat16):
            return attack(last, x, y, generator=seeded())

    contenders = {
        "hand-written": lambda: peers.hand(plain, x, y, **SETTINGS),
        "catlib": lambda: attack(robust_cnn, x, y, generator=seeded()),
        "catlib, compiled": lambda: compiled(last, x, y, generator=seeded()),
        **{
            name: make(copy.deepcopy(plain), x, y, **SETTINGS)
            for name, make in peers.OTHERS.items()
            if peers.is_installed(name)
        },
        "hand-written, loss.backward()": lambda: peers.hand(plain, x, y, **SETTINGS, backward=True),
        "hand-written, frozen": lambda: peers.hand(frozen, x, y, **SETTINGS),
        "catlib, channels_last": lambda: attack(last, x, y, generator=seeded()),
        "catlib, unchecked": lambda: attack(robust_cnn, x, y, generator=seeded(), check=False),
        "catlib, network alone compiled": lambda: attack(network, x, y, generator=seeded()),
        "catlib, bfloat16": in_bfloat16,
        "catlib, in parts of 32": lambda: in_parts(attack, robust_cnn, x, y, 32),
        "catlib, torch's gradient through the first layer": as_torch_has_it(
            lambda: attack(robust_cnn, x, y, generator=seeded())
        ),
    }
    run = SideBySide(benchmark, contenders, rounds=15)
    reached = {name: robust(plain, result, y) for name, result in run.results.items()}
    for name in contenders:
        note(
            "attack",
            name,
            run.ratio(name, "hand-written"),
            seconds=run.seconds(name),
            robust_accuracy=reached[name],
            rounds=run.rounds,
            note=f"wall-time ratio {run.ratio(name, 'hand-written', wall=True):.3f}",
        )
    for name, base, bar, row in (
        ("catlib", "hand-written", "1.02", 1),
        ("catlib, compiled", "hand-written", "0.92", 1),
        ("catlib", "torchattacks", "1.00", 2),
        ("catlib", "foolbox", "0.70", 2),
        ("catlib", "ART", "0.65", 2),
    ):
        measure = f"{'compiled' if 'compiled' in name else 'eager'} over {base}"
        if base not in contenders:
            note(row, measure, bar=f"<={bar}", met="open", note=peers.missing(base))
            continue
        note(
            row,
            measure,
            run.ratio(name, base),
            f"<={bar}",
            seconds=run.seconds(name),
            robust_accuracy=reached[name],
            rounds=run.rounds,
            note=f"robust accuracy of {base} {reached[base]:.3f}",
        )
    for what, name, base, remark in (
        ("input gradient only, cnn", "hand-written", "hand-written, loss.backward()", "used"),
        (
            "frozen parameters, cnn",
            "hand-written, frozen",
            "hand-written",
            "left out: no gain",
        ),
        (
            "gradient through the first layer by a matrix product, cnn",
            "catlib",
            "catlib, torch's gradient through the first layer",
            "used",
        ),
        (
            "three passes over the images a step instead of eight, cnn",
            "catlib, torch's gradient through the first layer",
            "hand-written",
            "used",
        ),
        (
            "the whole step compiled, channels_last, cnn",
            "catlib, compiled",
            "catlib",
            "used: compile=True",
        ),
        (
            "the network alone compiled, cnn",
            "catlib, network alone compiled",
            "catlib, channels_last",
            "left out of the attack",
        ),
        (
            "channels_last, cnn, eager",
            "catlib, channels_last",
            "catlib",
            "left out: the cnn is not built so",
        ),
        ("parts of 32 that fit the cache, cnn", "catlib, in parts of 32", "catlib", "left out"),
        (
            "bfloat16 autocast on a CPU, cnn",
            "catlib, bfloat16",
            "catlib, channels_last",
            "not the default on a CPU",
        ),
        (
            "leaving out the checks of the batch, cnn",
            "catlib, unchecked",
            "catlib",
            "checks stay on",
        ),
    ):
        note(
            "trick",
            what,
            run.ratio(name, base),
            robust_accuracy=reached[name],
            rounds=run.rounds,
            note=remark,
        )
    same = reached["catlib"], reached["catlib, compiled"], reached["hand-written"]
    assert max(same) - min(same) <= 1 / len(y), (
        same
    )  # the same starts: at most one image on the edge may differ
    assert abs(reached["catlib, bfloat16"] - reached["catlib"]) <= 1 / len(y)


def test_resnet(benchmark, note, only_cpu):
    data = catlib.load_data("cifar10")
    x, y = data.test(slice(64))
    model = catlib.build_model("resnet18", data).eval()
    plain, folded = plain_format(copy.deepcopy(model)), affine(model)
    settings = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 1}  # every step costs the same
    attack = catlib.PGD(**settings)

    def in_bfloat16():
        with torch.autocast("cpu", torch.bfloat16):
            return attack(model, x, y, generator=seeded())

    contenders = {
        "hand-written": lambda: peers.hand(plain, x, y, **settings),
        "catlib": lambda: attack(model, x, y, generator=seeded()),
        "batch norm as one multiplication": lambda: attack(folded, x, y, generator=seeded()),
        "parts of 16": lambda: in_parts(attack, model, x, y, 16),
        "bfloat16": in_bfloat16,
        "torch's first layer": as_torch_has_it(lambda: attack(model, x, y, generator=seeded())),
    }
    run = SideBySide(benchmark, contenders, rounds=5)
    a, b = torch.rand(2048, 2048), torch.rand(2048, 2048)
    peak = SideBySide(benchmark_once, {"product": lambda: a @ b}, rounds=7)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(x)
    # backward to the image costs what forward costs
    rate, top = (
        2 * forward.get_total_flops() / run.seconds("hand-written"),
        2 * 2048**3 / peak.seconds("product"),
    )
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        contenders["hand-written"]()
    spent = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    share = sum(
        t
        for key, t in spent.items()
        if key in ("aten::mkldnn_convolution", "aten::convolution_backward")
    ) / sum(spent.values())
    note(
        1,
        "ResNet-18, batch 64, eager over hand-written",
        run.ratio("catlib", "hand-written"),
        "<=0.92",
        seconds=run.seconds("catlib"),
        rounds=run.rounds,
        note=f"convolutions alone are {share:.2f} of the hand-written attack's time; it runs at "
        f"{rate / 1e9:.0f} GFLOP/s, a float32 matrix product of 2048 at {top / 1e9:.0f}",
    )
    for what, name, base, remark in (
        ("channels_last, ResNet-18", "torch's first layer", "hand-written", "used"),
        (
            "gradient through the first layer by a matrix product, ResNet-18",
            "catlib",
            "torch's first layer",
            "used",
        ),
        (
            "batch norm as one multiplication, ResNet-18",
            "batch norm as one multiplication",
            "catlib",
            "left out: little, and it would swap the user's modules",
        ),
        ("parts of 16 that fit the cache, ResNet-18", "parts of 16", "catlib", "left out"),
        (
            "bfloat16 autocast on a CPU, ResNet-18",
            "bfloat16",
            "catlib",
            'precision="bfloat16"; not the default on a CPU',
        ),
    ):
        note("trick", what, run.ratio(name, base), rounds=run.rounds, note=remark)
    moved = (
        (run.results["catlib"] - run.results["hand-written"]).abs().gt(1e-4).double().mean().item()
    )
    assert moved < 0.01, f"{moved:.2%} of the pixels went another way"


class benchmark_once:
    """Rounds beside the fixture, which takes one function a test."""

    @staticmethod
    def pedantic(function, rounds):
        for _ in range(rounds):
            function()
