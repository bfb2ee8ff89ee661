"""Rows 5 and 7 to 9: a whole iteration of training."""

import copy
import os
from dataclasses import dataclass

import peers
import pytest
import report
import torch
import torch.nn.functional as F
from measure import SideBySide
from torch.utils.flop_counter import FlopCounterMode

import catlib

pytestmark = pytest.mark.benchmark
RESNET = {"epsilon": 8 / 255, "step_size": 2 / 255, "steps": 10}


@dataclass(frozen=True)
class Size:
    """How large the measurements of a GPU are; what is left out of TINY is as in FULL.

    Attributes:
        width: of the ResNet-18.
        most: images in a batch of training.
        crafted: images in a batch that is attacked.
        product: rows of the matrix product.
        iterations: of the training whose model is judged.
        judged: test images.
        rounds: the most of them.
        warm: calls before the first round.
    """

    dataset: str = "cifar10"
    width: int = 64
    most: int = 512
    crafted: int = 512
    product: int = 8192
    iterations: int = 400
    judged: int = 5000
    rounds: int = 25
    warm: int = 6


TINY = Size(
    "digits",
    width=8,
    most=8,
    crafted=8,
    product=64,
    iterations=2,
    judged=16,
    rounds=1,
    warm=1,
)
# tests/test_mock_gpu.py runs every line of them on a mock GPU; no bar can be met there
IS_TINY = os.environ.get("CATLIB_BENCH") == "tiny"
SIZE = TINY if IS_TINY else Size()


def trainings(data, model, attack, k, **settings):
    """AT and CAT from the same weights, as functions that do one iteration."""
    for name, sampler in (("AT", catlib.UniformSampler), ("CAT", catlib.CaseSampler)):
        training = catlib.Training(
            copy.deepcopy(model),
            data,
            sampler(data.y_train.to(settings["device"]), k),
            attack,
            **settings,
        )
        yield name, training


def test_cat_over_at(benchmark, note, only_cpu, mnist):
    both = dict(
        trainings(mnist, catlib.build_model("cnn", mnist), catlib.PGD(0.1), 128, device="cpu")
    )
    sampler = both["CAT"].sampler
    run = SideBySide(
        benchmark,
        {name: lambda t=training: next(t) for name, training in both.items()}
        | {"sampler": lambda: sampler.update(sampler.draw(), torch.zeros(128))},
        # on a shared CPU the median's standard error is then below half a percent, as the bar needs
        rounds=300,
        warm=3,
    )
    note(
        5,
        "PGD-10, k = 128",
        run.ratio("CAT", "AT"),
        "<=1.02",
        seconds=run.seconds("CAT"),
        rounds=run.rounds,
        note=f"draw and update alone: {run.ratio('sampler', 'AT'):.4f} of an AT iteration",
    )


@pytest.fixture
def cuda(device, note):
    def needs(row, measure, bar):
        if device != "cuda" or not torch.cuda.is_available():
            note(row, measure, bar=bar, met="open", note=report.OPEN)
            pytest.skip(report.OPEN)

    return needs


@pytest.fixture(scope="module")
def on_cuda():
    """A function: the data and a ResNet-18, as a GPU's measurements take them."""

    def build():
        torch._dynamo.reset()
        data = catlib.load_data(SIZE.dataset).to("cuda")
        return data, catlib.build_model("resnet18", data, width=SIZE.width)

    return build


def torchattacks_loop(data, model, k):
    """What one writes with torchattacks: eager, float32, the data on the device all the same."""
    order = torch.randperm(
        len(data.y_train), device="cuda", generator=torch.Generator("cuda").manual_seed(0)
    )
    optimizer, batches = (
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        iter(order.split(k)),
    )
    model.train()

    def iteration():
        x, y = data.train(next(batches))
        adversarial = peers.torchattacks_pgd(model, x, y, **RESNET)()
        optimizer.zero_grad()
        F.cross_entropy(model(adversarial), y).backward()
        optimizer.step()

    return iteration


@pytest.mark.parametrize("k, bar", [(128, "<=0.25"), (512, "<=0.30")])
def test_cuda_training(benchmark, note, cuda, on_cuda, k, bar):
    cuda(7, f"batch {k}", bar)
    if not peers.is_installed("torchattacks"):
        note(7, f"batch {k}", bar=bar, met="open", note=peers.missing("torchattacks"))
        pytest.skip(peers.missing("torchattacks"))
    data, model = on_cuda()
    k = min(k, SIZE.most)
    training = dict(trainings(data, model, catlib.PGD(**RESNET), k, device="cuda", compile=True))[
        "CAT"
    ]
    eager = catlib.Training(
        copy.deepcopy(model),
        data,
        catlib.UniformSampler(data.y_train, k),
        catlib.PGD(**RESNET),
        device="cuda",
    )
    run = SideBySide(
        benchmark,
        {
            "torchattacks": torchattacks_loop(
                data, copy.deepcopy(model).to("cuda", memory_format=torch.contiguous_format), k
            ),
            "catlib": lambda: next(training),
            "catlib, eager bfloat16": lambda: next(eager),
        },
        rounds=min(7, SIZE.rounds),
        device="cuda",
        warm=SIZE.warm,
    )
    note(
        7,
        f"batch {k}",
        run.ratio("catlib", "torchattacks"),
        bar,
        seconds=run.seconds("catlib"),
        rounds=run.rounds,
    )
    note(
        "trick",
        f"bfloat16 and channels_last, ResNet-18, batch {k}",
        run.ratio("catlib, eager bfloat16", "torchattacks"),
        note="used",
    )
    note(
        "trick",
        f"compiled and replayed as CUDA graphs, batch {k}",
        run.ratio("catlib", "catlib, eager bfloat16"),
        note="used",
    )


def test_cuda_flops(benchmark, note, cuda, on_cuda, tmp_path):
    cuda(8, "share of the matrix product's FLOP/s", ">=0.30")
    data, model = on_cuda()
    model.to("cuda").eval()
    x, y = data.test(slice(SIZE.crafted))
    attack = catlib.PGD(**RESNET, compile=True)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(x)
    a = torch.randn(SIZE.product, SIZE.product, device="cuda", dtype=torch.bfloat16)
    generator = torch.Generator("cuda").manual_seed(0)

    def craft():
        with torch.autocast("cuda", torch.bfloat16):
            return attack(model, x, y, generator=generator, check=False)

    run = SideBySide(
        benchmark,
        {"attack": craft, "product": lambda: a @ a},
        rounds=min(15, SIZE.rounds),
        device="cuda",
        warm=SIZE.warm,
    )
    rate = 2 * forward.get_total_flops() * attack.steps / run.seconds("attack")
    # backward to the image costs what forward costs
    top = 2 * SIZE.product**3 / run.seconds("product")
    with torch.profiler.profile() as profile:
        craft()
        torch.cuda.synchronize()
    kernels = profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=25)
    folder = tmp_path if IS_TINY else report.ROOT / "data" / "results"
    (folder / "benchmarks_cuda_profile.txt").write_text(kernels)
    note(
        8,
        "share of the matrix product's FLOP/s",
        rate / top,
        ">=0.30",
        seconds=run.seconds("attack"),
        rounds=run.rounds,
        note=f"{rate / 1e12:.0f} of {top / 1e12:.0f} TFLOP/s; "
        "the rest: benchmarks_cuda_profile.txt",
    )


def test_cuda_precision(benchmark, note, device, on_cuda):
    """A bfloat16 attack must be as strong as a float32 one.

    Both are judged in float32, on a model trained in bfloat16.
    """
    if device != "cuda" or not torch.cuda.is_available():
        pytest.skip(report.OPEN)
    data, model = on_cuda()
    training = catlib.Training(
        model,
        data,
        catlib.UniformSampler(data.y_train),
        catlib.PGD(**RESNET),
        iterations=SIZE.iterations,
        device="cuda",
    )
    benchmark.pedantic(lambda: [None for _ in training], rounds=1)
    x, y = data.test(slice(SIZE.judged))

    def in_bfloat16(model, images, labels):
        with torch.autocast("cuda", torch.bfloat16):
            return catlib.PGD(8 / 255, steps=20)(
                model, images, labels, generator=torch.Generator("cuda").manual_seed(0)
            )

    def in_float32(model, images, labels):
        return catlib.PGD(8 / 255, steps=20)(
            model, images, labels, generator=torch.Generator("cuda").manual_seed(0)
        )

    low, high = (
        catlib.robust_accuracy(model, x, y, attack) for attack in (in_bfloat16, in_float32)
    )
    note(
        7,
        "points of robust accuracy that bfloat16 leaves",
        100 * abs(low - high),
        "<=0.3",
        robust_accuracy=low,
        note=f"float32 {high:.4f}, on {len(x)} images",
    )


def test_cuda_cat_over_at(benchmark, note, cuda, on_cuda):
    cuda(9, "ResNet-18, PGD-10, compiled", "<=1.01")
    data, model = on_cuda()
    k = min(128, SIZE.most)
    both = dict(trainings(data, model, catlib.PGD(**RESNET), k, device="cuda", compile=True))
    run = SideBySide(
        benchmark,
        {name: lambda t=training: next(t) for name, training in both.items()},
        rounds=SIZE.rounds,
        device="cuda",
        warm=SIZE.warm,
    )
    note(
        9,
        "ResNet-18, PGD-10, compiled",
        run.ratio("CAT", "AT"),
        "<=1.01",
        seconds=run.seconds("CAT"),
        rounds=run.rounds,
    )
