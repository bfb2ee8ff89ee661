"""Rows 5 and 7 to 9: a whole iteration of training."""

import copy

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


def test_cat_over_at(benchmark, note, mnist, device):
    if device != "cpu":
        pytest.skip("this bar is for a CPU")
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
def cifar10():
    return catlib.load_data("cifar10")


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
def test_cuda_training(benchmark, note, cuda, request, k, bar):
    cuda(7, f"batch {k}", bar)
    if not peers.is_installed("torchattacks"):
        note(7, f"batch {k}", bar=bar, met="open", note=peers.missing("torchattacks"))
        pytest.skip(peers.missing("torchattacks"))
    torch._dynamo.reset()
    data = request.getfixturevalue("cifar10").to("cuda")
    model = catlib.build_model("resnet18", data)
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
        rounds=7,
        device="cuda",
        warm=6,
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


def test_cuda_flops(benchmark, note, cuda, request):
    cuda(8, "share of the matrix product's FLOP/s", ">=0.30")
    torch._dynamo.reset()
    data = request.getfixturevalue("cifar10").to("cuda")
    model = catlib.build_model("resnet18", data).to("cuda").eval()
    x, y = data.test(slice(512))
    attack = catlib.PGD(**RESNET, compile=True)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        model(x)
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    generator = torch.Generator("cuda").manual_seed(0)

    def craft():
        with torch.autocast("cuda", torch.bfloat16):
            return attack(model, x, y, generator=generator, check=False)

    run = SideBySide(
        benchmark, {"attack": craft, "product": lambda: a @ a}, rounds=15, device="cuda", warm=6
    )
    rate = 2 * forward.get_total_flops() * attack.steps / run.seconds("attack")
    # backward to the image costs what forward costs
    top = 2 * 8192**3 / run.seconds("product")
    with torch.profiler.profile() as profile:
        craft()
        torch.cuda.synchronize()
    kernels = profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=25)
    (report.ROOT / "data" / "results" / "benchmarks_cuda_profile.txt").write_text(kernels)
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


def test_cuda_precision(benchmark, note, device, request):
    """A bfloat16 attack must be as strong as a float32 one.

    Both are judged in float32, on a model trained in bfloat16.
    """
    if device != "cuda" or not torch.cuda.is_available():
        pytest.skip(report.OPEN)
    data = request.getfixturevalue("cifar10").to("cuda")
    model = catlib.build_model("resnet18", data)
    training = catlib.Training(
        model,
        data,
        catlib.UniformSampler(data.y_train),
        catlib.PGD(**RESNET),
        iterations=400,
        device="cuda",
    )
    benchmark.pedantic(lambda: [None for _ in training], rounds=1)
    x, y = data.test(slice(5000))

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


def test_cuda_cat_over_at(benchmark, note, cuda, request):
    cuda(9, "ResNet-18, PGD-10, compiled", "<=1.01")
    torch._dynamo.reset()
    data = request.getfixturevalue("cifar10").to("cuda")
    both = dict(
        trainings(
            data,
            catlib.build_model("resnet18", data),
            catlib.PGD(**RESNET),
            128,
            device="cuda",
            compile=True,
        )
    )
    run = SideBySide(
        benchmark,
        {name: lambda t=training: next(t) for name, training in both.items()},
        rounds=25,
        device="cuda",
        warm=6,
    )
    note(
        9,
        "ResNet-18, PGD-10, compiled",
        run.ratio("CAT", "AT"),
        "<=1.01",
        seconds=run.seconds("CAT"),
        rounds=run.rounds,
    )
