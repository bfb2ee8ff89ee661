"""The mock GPU refuses and counts what it is to; and training on it waits for nothing but a draw.

Without the mock, one test runs this file in a process that has it.
"""

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import mock_gpu
import nbformat
import pytest
import torch
from nbclient import NotebookClient

from catlib import (
    PGD,
    CaseSampler,
    Training,
    UniformSampler,
    build_model,
    crop_and_flip,
    guarded,
)
from catlib.lab.runs import Trial, build_training, records_of, run

ROOT = Path(__file__).parents[1]
on_the_mock = pytest.mark.skipif(torch.Generator is not mock_gpu.MockGenerator, reason="no mock")
SAMPLERS = {"AT": UniformSampler, "CAT": CaseSampler}


without_the_mock = pytest.mark.skipif(
    torch.Generator is mock_gpu.MockGenerator, reason="it is the mock"
)


def said_on_the_mock(*arguments, **variables):
    """What pytest says of these tests in a process that has the mock GPU; all have passed."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    # a process of its own, no worker of xdist, of which pytest-benchmark would warn
    own = {name: value for name, value in os.environ.items() if "XDIST" not in name}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "mock_gpu", *arguments],
        env=own | {"PYTHONPATH": path} | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
    return run.stdout


@pytest.mark.slow
@without_the_mock
def test_this_file_on_the_mock():
    assert "skipped" in said_on_the_mock(__file__)


@pytest.mark.slow
@without_the_mock
def test_the_benchmarks_of_a_gpu_run_from_end_to_end():
    """In a size that measures nothing."""
    said = said_on_the_mock(
        "tests/benchmarks/test_iteration.py", CATLIB_DEVICE="cuda", CATLIB_BENCH="tiny"
    )
    cat_over_at_on_a_cpu = 1
    torchattacks = 0 if find_spec("torchattacks") else 2
    assert f"{cat_over_at_on_a_cpu + torchattacks} skipped" in said
    assert "share of the matrix product's FLOP/s" in said and "not written" in said


def test_a_kernel_that_begins_with_the_mock_has_it():
    """Else the notebooks of `make test DEVICE=mock` would pass on the CPU, and nobody knew."""
    code = "import torch; print(torch.ones(2, device='cuda').device, torch.cuda.is_available())"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    startup = {"PYTHONPATH": str(ROOT / "tests")}
    startup["PYTHONSTARTUP"] = str(ROOT / "tests" / "mock_kernel.py")
    NotebookClient(book, kernel_name="python3").execute(env=os.environ | startup)
    assert [output.text for output in book.cells[0].outputs] == ["cuda:0 True\n"]


def training_of(method, data, device, **options):
    model = build_model("cnn", data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sampler = SAMPLERS[method](data.y_train.to(device), 64)
    attack = PGD(0.1, steps=3)
    return Training(model, data, sampler, attack, optimizer, device=device, **options)


@on_the_mock
@pytest.mark.parametrize("method", SAMPLERS)
@pytest.mark.parametrize("augment", [None, crop_and_flip])
def test_an_iteration_waits_for_nothing_but_its_draw(digits, method, augment):
    """AT's draw needs nothing of the host; CAT's sends the places of the examples it draws."""
    training = training_of(method, digits, "cuda", augment=augment)
    next(training)
    mock_gpu.WAITS.clear()
    next(training)
    waits = {what for what, _ in mock_gpu.WAITS}
    assert waits <= {"copy to the device, without waiting"}, mock_gpu.WAITS
    assert sum(mock_gpu.WAITS.values()) == {"AT": 0, "CAT": 1}[method]
    assert all("samplers.py" in place for _, place in mock_gpu.WAITS)


@on_the_mock
@pytest.mark.parametrize("method", SAMPLERS)
def test_training_has_the_numbers_of_the_cpu(digits, method):
    options = {"precision": "float32", "evaluate_every": 1, "evaluation_size": 50}
    here = training_of(method, digits, "cpu", **options)
    there = training_of(method, digits, "cuda", **options)
    assert there.sampler.device.type == "cuda"
    for _ in range(2):
        record = next(here)
        mocked = next(there)
        assert torch.equal(there.batch.indices.cpu(), here.batch.indices)
        assert mocked.loss == pytest.approx(record.loss, rel=1e-4)
        assert mocked.robust_accuracy == record.robust_accuracy
    assert {p.device for p in there.model.parameters()} == {torch.device("cuda", 0)}


WAYS = {
    "TRADES": {"loss": "trades", "crafting": "kl"},
    "MART": {"loss": "mart", "method": "AT"},
    "a memory": {"memory_bits": 8, "augment": True, "steps": 1},
    "a budget": {"budget": "boundary"},
    "N-FGSM": {"crafting": "n-fgsm"},
    "free": {"crafting": "free", "augment": True},
    "batch mean": {"crafting": "batch mean", "evaluation_rule": "batch mean"},
    "l2": {"norm": "l2", "epsilon": 1.0},
    "restarts": {"rule": "gradient", "restarts": 2},
    "batch norm": {"model": "resnet18", "width": 8, "batch_norm": "train", "recalibrate": 64},
    "schedules": {"optimizer": "adam", "schedule": "cyclic", "epsilon_warm_up": 3, "warm_up": 2},
    "unbalanced": {"class_balanced": False, "temperature": 2.0},
    "boundary": {"weighting": "boundary"},
    "rank": {"weighting": "rank"},
}
# each example its own number of steps: how many there are, and which ones
WAITS_OF = {"a budget": {"reads a number", "counts what is not zero"}}


@on_the_mock
@pytest.mark.parametrize("name", WAYS)
def test_every_way_to_train_has_the_numbers_of_the_cpu(name):
    small = {"iterations": 3, "evaluate_every": 3, "evaluation_size": 20, "evaluation_steps": 2}
    small |= {"sampling_number": 32, "train_size": 200, "precision": "float32"}
    ends = []
    for device in ("cpu", "cuda"):
        trial = Trial(device=device, **small | {"steps": 2} | WAYS[name])
        training = build_training(trial)
        records = records_of(trial, training)
        next(records)
        mock_gpu.WAITS.clear()
        next(records)
        waits = {what for what, _ in mock_gpu.WAITS}
        ends.append(next(records))
    assert waits <= {"copy to the device, without waiting"} | WAITS_OF.get(name, set())
    here, there = ends
    assert there.loss == pytest.approx(here.loss, rel=1e-4)
    assert (there.passes, there.robust_accuracy) == (here.passes, here.robust_accuracy)


@on_the_mock
def test_a_guard_finds_on_the_device_what_it_finds_on_the_cpu():
    small = {"iterations": 12, "evaluate_every": 0, "sampling_number": 32, "steps": 1}
    ends = []
    for device in ("cpu", "cuda"):
        training = build_training(Trial(device=device, precision="float32", **small))
        *_, record = guarded(training, share=0.5, size=16)
        assert record.checked is not None
        ends.append(record)
    here, there = ends
    assert there.loss == pytest.approx(here.loss, rel=1e-4)
    assert replace(there, seconds=0.0, loss=here.loss) == replace(here, seconds=0.0)


@on_the_mock
def test_training_goes_on_from_a_file(digits, tmp_path):
    training = training_of("CAT", digits, "cuda")
    next(training)
    torch.save(training.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True, map_location="cuda")
    assert state["seen"].is_cuda
    resumed = training_of("CAT", digits, "cuda")
    resumed.load_state_dict(state)
    next(resumed)
    next(training)
    assert torch.equal(resumed.batch.logits, training.batch.logits)


@on_the_mock
@pytest.mark.parametrize("evaluate_every, said_at", [(4, 4), (0, 6)])
def test_a_divergence_is_said_when_the_device_is_asked(digits, evaluate_every, said_at):
    """At the next evaluation or at the end, and with the iteration at which a CPU stops."""
    options = {"precision": "float32", "iterations": 6, "evaluate_every": evaluate_every}
    here = training_of("CAT", digits, "cpu", **options)
    there = training_of("CAT", digits, "cuda", **options)
    for training in (here, there):
        training.optimizer.param_groups[0]["lr"] = 1e30
    with pytest.raises(FloatingPointError, match="training diverged") as on_the_cpu:
        list(here)
    first = here.iteration + 1
    assert first < 4 and f"at iteration {first}:" in str(on_the_cpu.value)
    for _ in range(said_at - 1):
        assert next(there).loss is None
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=f"at iteration {first}: training diverged"):
            next(there)
        assert there.diverged_at() == first
        assert there.iteration == said_at
    there.load_state_dict(here.state_dict())  # of before
    assert there.diverged_at() == 0 and there.iteration == first - 1


@on_the_mock
def test_ctrl_c_keeps_the_checkpoint_from_before_a_divergence(tmp_path):
    trial = Trial(device="cuda", iterations=20, evaluate_every=20, evaluation_size=10)

    def stop(training, record):
        raise KeyboardInterrupt

    def spoil_and_stop(training, record):
        training.optimizer.param_groups[0]["lr"] = 1e30
        if training.diverged_at():
            raise KeyboardInterrupt

    checkpoint = tmp_path / trial.id / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        run(trial, tmp_path, observe=stop)
    kept = checkpoint.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        run(trial, tmp_path, observe=spoil_and_stop)
    assert checkpoint.read_bytes() == kept


@on_the_mock
@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: here + there,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: torch.nn.functional.linear(there[None], here[None]),
        lambda here, there: here[there.long()],
        lambda here, there: there.index_put_((torch.tensor([0, 1]),), here[:2]),
        lambda here, there: there.numpy(),
        lambda here, there: there.uniform_(generator=torch.Generator()),
        lambda here, there: here.uniform_(generator=torch.Generator("cuda")),
        lambda here, there: torch.randperm(3, generator=torch.Generator("cuda")),
    ],
)
def test_what_a_gpu_refuses_is_refused(mix):
    with pytest.raises((RuntimeError, TypeError), match="device"):
        mix(torch.rand(3), torch.rand(3, device="cuda"))


@on_the_mock
@pytest.mark.parametrize(
    "act, waits",
    [
        (lambda there: there + 1, []),
        (lambda there: there * torch.tensor(2.0), []),  # a number of the host
        (lambda there: there[:2].sum(), []),
        (lambda there: torch.rand(3, device="cuda"), []),
        (lambda there: there.masked_fill(there > 0.5, 0), []),
        (lambda there: there.index_put_((there > 0.5,), torch.zeros((), device="cuda")), []),
        (lambda there: there.sum().item(), ["reads a number"]),
        (lambda there: bool(there.sum() > 0), ["reads a number"]),
        (lambda there: there[there > 0.5], ["counts what a mask selects"]),
        (lambda there: there.nonzero(), ["counts what is not zero"]),
        (lambda there: there[torch.tensor([0])], ["copy to the device"]),
        (lambda there: there.cpu(), ["copy to the host"]),
        (lambda there: there.to("cpu"), ["copy to the host"]),
        (lambda there: there.tolist(), ["reads numbers"]),
        (lambda there: torch.rand(3).to("cuda"), ["copy to the device"]),
        (lambda there: torch.equal(there, there), ["compares whole tensors"]),
        (lambda there: torch.cuda.synchronize(), ["synchronises"]),
        (lambda there: there.copy_(torch.rand(3)), ["copy between the devices"]),
    ],
)
def test_what_a_gpu_waits_for_is_counted(act, waits):
    there = torch.rand(3, device="cuda")
    mock_gpu.WAITS.clear()
    act(there)
    assert [what for what, _ in mock_gpu.WAITS.elements()] == waits
    assert all(place.startswith("tests/test_mock_gpu.py:") for _, place in mock_gpu.WAITS)


@on_the_mock
def test_a_module_keeps_its_parameters_when_it_moves():
    layer = torch.nn.Linear(2, 3)
    parameters = list(layer.parameters())
    layer.to("cuda")
    assert [id(p) for p in layer.parameters()] == [id(p) for p in parameters]
    assert layer.weight.is_cuda and isinstance(layer.weight, torch.nn.Parameter)
    layer(torch.rand(1, 2, device="cuda")).sum().backward()
    assert layer.weight.grad.is_cuda
    layer.to("cpu")
    assert not layer.weight.is_cuda
