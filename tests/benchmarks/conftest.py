import os
import platform
from pathlib import Path

import pytest
import report
import torch

import catlib

DEVICE = os.environ.get("CATLIB_DEVICE", "cpu").strip()
ROWS = pytest.StashKey()


def pytest_configure(config):
    config.stash[ROWS] = []
    if DEVICE == "cpu":
        torch.set_num_threads(
            1
        )  # so that process time is what the work costs, whoever shares the machine


@pytest.fixture
def note(request):
    """Keep a figure for the report: ``note(row, measure, value, bar, ...)``.

    A figure with a bar says if the bar is met.
    """

    def keep(
        row,
        measure,
        value="",
        bar="",
        *,
        met="",
        seconds="",
        robust_accuracy="",
        rounds="",
        note="",
    ):
        if bar and not met:
            met = (
                "yes"
                if (value >= float(bar[2:]) if bar.startswith(">=") else value <= float(bar[2:]))
                else "no"
            )
        short = {"value": value, "seconds": seconds, "robust_accuracy": robust_accuracy}
        row = {
            "row": str(row),
            "measure": measure,
            "bar": bar,
            "met": met,
            "rounds": rounds,
            "note": note,
            **{key: f"{x:.5g}" if isinstance(x, float) else x for key, x in short.items()},
        }
        request.config.stash[ROWS].append(row)
        return row

    return keep


@pytest.fixture(scope="session")
def device():
    return DEVICE


@pytest.fixture(scope="session")  # so that a GPU's run trains no model for what is skipped
def only_cpu(device):
    if device != "cpu":
        pytest.skip("these bars are for a CPU")


@pytest.fixture(scope="session")
def mnist():
    return catlib.load_data("mnist")


@pytest.fixture(scope="session")
def robust_cnn(mnist):
    """A cnn after some adversarial training, so that an attack has something left to break."""
    model = catlib.build_model("cnn", mnist)
    training = catlib.Training(
        model,
        mnist,
        catlib.UniformSampler(mnist.y_train),
        catlib.PGD(0.15, steps=4),
        torch.optim.Adam(model.parameters(), 1e-3),
        iterations=250,
        device="cpu",
    )
    for _ in training:
        pass
    return model.eval()


def _hardware():
    if DEVICE == "cuda":
        return torch.cuda.get_device_name()
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor()


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[ROWS]
    if not rows:
        return
    if os.environ.get("CATLIB_BENCH") == "tiny":
        terminalreporter.write_line("tiny, which measures nothing: printed, not written")
    elif config.args != [str(report.ROOT / "tests" / "benchmarks")] and not config.args[0].rstrip(
        "/"
    ).endswith("benchmarks"):
        terminalreporter.write_line("a part of the benchmarks: printed, not written")
    else:
        loads = (
            " ".join(f"{load:.1f}" for load in os.getloadavg())
            if hasattr(os, "getloadavg")
            else "unknown"
        )
        file = report.write(
            DEVICE, rows, report.header(DEVICE, _hardware(), torch.get_num_threads(), loads)
        )
        terminalreporter.write_line(
            f"written: {file} and {report.plot(DEVICE) if DEVICE == 'cpu' else 'no plot'}"
        )
    for line in report.table(rows):
        terminalreporter.write_line(line)
