"""Rows 4 and 6: the time of a sampling step against the size of the data, and its memory."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from measure import SideBySide
from torch.utils.data import WeightedRandomSampler

import catlib

pytestmark = [pytest.mark.benchmark, pytest.mark.usefixtures("only_cpu")]
SIZES = (10**4, 10**5, 10**6, 10**7, 5 * 10**7)
K_DRAWN = 256


def sampler_of(labels, **settings):
    """A sampler in the middle of training: every weight its own."""
    sampler = catlib.CaseSampler(labels, K_DRAWN, **settings)
    state = sampler.state_dict()
    state["weights"] = (
        torch.randn(len(labels), generator=torch.Generator().manual_seed(0)).mul_(2).sub_(3)
    )
    sampler.load_state_dict(state)
    return sampler


def stepper(sampler):
    generator = torch.Generator().manual_seed(0)

    def step():
        sampler.update(sampler.draw(), torch.randn(K_DRAWN, generator=generator) - 3)

    return step


@pytest.mark.parametrize("classes", [10, 1000])
def test_step(benchmark, note, classes):
    run = SideBySide(
        benchmark,
        {n: stepper(sampler_of(torch.arange(n) % classes)) for n in SIZES},
        rounds=300,
        warm=20,
    )
    for n in SIZES:
        note(
            4,
            f"K = {classes}, n = {n}: milliseconds",
            1e3 * run.seconds(n),
            "<=1.0",
            seconds=run.seconds(n),
            rounds=run.rounds,
            note=f"wall {1e3 * float(np.median(run.walls[n])):.3f}",
        )
        note(
            "sampling",
            f"catlib, {classes} classes, n = {n}",
            seconds=run.seconds(n),
            rounds=run.rounds,
        )
    note(
        4,
        f"K = {classes}: growth from 10^5 to 5*10^7",
        run.ratio(SIZES[-1], 10**5),
        "<=4.0",
        rounds=run.rounds,
    )


@pytest.mark.parametrize("n", SIZES[:4])
def test_others(benchmark, note, n):
    """All examples one class, which is the only draw that the others know."""
    sampler = sampler_of(torch.zeros(n, dtype=torch.long), class_balanced=False, temperature=2.0)
    sort = (
        sampler_of(
            torch.zeros(n, dtype=torch.long), class_balanced=False, temperature=2.0, tree=False
        )
        if n <= 10**6
        else None
    )
    weights = (sampler.weights / 2).exp()
    p = weights.double().numpy() / weights.double().sum().item()
    generator, numpy_generator = torch.Generator().manual_seed(0), np.random.default_rng(0)
    contenders = {
        "catlib, tree": stepper(sampler),
        **({"catlib, plain form": stepper(sort)} if sort else {}),
        "torch.multinomial": lambda: torch.multinomial(weights, K_DRAWN, generator=generator),
        "WeightedRandomSampler": lambda: list(
            WeightedRandomSampler(weights, K_DRAWN, replacement=False, generator=generator)
        ),
        "numpy choice": lambda: numpy_generator.choice(n, K_DRAWN, replace=False, p=p),
    }
    run = SideBySide(benchmark, contenders, rounds=15 if n <= 10**6 else 5, untimed=True)
    for name in contenders:
        note(
            "sampling",
            f"{name}, n = {n}",
            run.ratio(name, "catlib, tree"),
            seconds=run.seconds(name),
            rounds=run.rounds,
            note="value: time over catlib's tree; "
            "the others only draw, catlib also takes the new weights",
        )


MEMORY = """
import sys, torch, catlib
n = int(sys.argv[1])
def resident(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
small = catlib.CaseSampler(torch.arange(10000) % 10, 256)   # compiled code is no example's
small.update(small.draw(), torch.zeros(256))
labels = torch.arange(n) % 10
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")               # the peak counts from here
sampler = catlib.CaseSampler(labels, 256)
for _ in range(50):
    sampler.update(sampler.draw(), torch.randn(256))
print((resident("VmRSS") - before) / n, (resident("VmHWM") - before) / n)
"""


@pytest.mark.skipif(
    not os.path.exists("/proc/self/clear_refs"),
    reason="reads the memory of a process as Linux tells it",
)
def test_memory(benchmark, note):
    answer = benchmark.pedantic(
        subprocess.run,
        args=([sys.executable, "-c", MEMORY, str(SIZES[-1])],),
        rounds=1,
        kwargs={"capture_output": True, "text": True, "check": True},
    ).stdout
    resident, peak = map(float, answer.split())
    note(
        6,
        "bytes an example, resident",
        resident,
        "<=32",
        rounds=1,
        note="growth of the process, labels excluded",
    )
    note(
        6,
        "bytes an example, peak while it is made",
        peak,
        "<=32",
        rounds=1,
        note="growth of the process, labels excluded",
    )
