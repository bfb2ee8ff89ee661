"""`catlib gpu`: its checks find what is wrong, and its logic holds, tried on a CPU."""

import json
import time
from dataclasses import replace

import pytest
import torch

from catlib.lab import __main__, gpu
from catlib.lab.study import cost, plan, work

CPU = torch.device("cpu")
SMALLEST = replace(gpu.ON_CPU, images=200, evaluated=20, rounds=1)


@pytest.fixture(scope="module")
def report():
    lines = []
    return gpu.examine(CPU, SMALLEST, lines.append), lines


def test_a_cpu_agrees_with_itself_exactly(report):
    found, _ = report
    assert found.passed and {check.difference for check in found.checks} == {0}
    subjects = {check.what.split(":")[0].split(",")[0] for check in found.checks}
    assert subjects == {
        "attack", "information gain", "draw", "draw on the device", "training", "resume"
    }  # fmt: skip


def test_everything_is_measured_and_said(report):
    found, lines = report
    assert {"iteration", "draw", "checkpoint", "step", "image"} <= set(found.measured)
    assert all(0 < seconds < 60 for seconds in found.measured.values())
    text = "\n".join(lines)
    assert "torch" in text and torch.__version__ in text and "WRONG" not in text
    assert "an evaluation" in text and "iteration, without cudnn.benchmark" in text
    speed = found.speed
    assert speed.step == found.measured["step"]
    assert speed.compilation == cost.H200.compilation, "not measured on a CPU"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_is_examined_from_end_to_end(monkeypatch, capsys, tmp_path):
    """In small, and one process after the other in place of two at once."""

    def in_this_process(processes, size):
        return [gpu._iterations_a_second(size, time.time(), 0.1) for _ in range(processes)]

    path = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "ON_GPU", SMALLEST)
    monkeypatch.setattr(gpu, "REPORT", path)
    monkeypatch.setattr(gpu, "_iterations_of", in_this_process)
    assert __main__.main(["gpu"]) == 0
    said = capsys.readouterr().out
    assert "WRONG" not in said and "left out" not in said
    assert "The study's profile paper on this GPU" in said
    saved = json.loads(path.read_text())
    assert saved["passed"]
    assert {"compilation", "compiled_step", "two at once"} <= set(saved["measured"])
    speed = gpu.known_speed(torch.device("cuda"), path)
    assert speed.compiled_step == saved["measured"]["compiled_step"]


def test_what_is_not_measured_in_time_is_left_out_and_named(monkeypatch):
    monkeypatch.setattr(gpu, "SECONDS", 0.0)
    monkeypatch.setattr(gpu, "checks", lambda _: iter(()))
    lines = []
    found = gpu.examine(CPU, SMALLEST, lines.append)
    assert not found.measured and "iteration" in found.left_out
    assert found.speed == cost.H200
    assert lines[-1].startswith("  left out, as the time was up: iteration, ")


WRONG = {
    "information gain": ("information_gain", lambda genuine: lambda *a: genuine(*a) * 1.001),
    "attack, resnet18": ("_loss", lambda genuine: lambda *a: genuine(*a) * 1.01),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_device_that_computes_something_else_is_found(monkeypatch, capsys, tmp_path, name):
    """Every second time, which is the device's, a number comes out a little larger."""
    function, spoil = WRONG[name]
    genuine = getattr(gpu, function)
    calls = [0]

    def spoilt(*arguments):
        calls[0] += 1
        return (genuine if calls[0] % 2 else spoil(genuine))(*arguments)

    monkeypatch.setattr(gpu, function, spoilt)
    monkeypatch.setattr(gpu, "measurements", lambda *_: iter(()))
    path = tmp_path / "gpu.json"
    assert __main__.main(["gpu", "--device", "cpu", "--report", str(path)]) == __main__.FAILED
    assert f"  WRONG  {name}" in capsys.readouterr().out
    assert json.loads(path.read_text())["passed"] is False
    assert gpu.known_speed(CPU, path) is None


def test_a_difference_that_is_no_number_does_not_pass():
    assert not gpu.Check("loss", float("nan"), 1.0).passed


def test_a_report_is_known_again_on_the_same_machine_alone(report, tmp_path):
    found, _ = report
    path = tmp_path / "runs" / "gpu.json"
    assert gpu.known_speed(CPU, path) is None
    gpu.save(found, path)
    assert gpu.known_speed(CPU, path) == found.speed
    other = json.loads(path.read_text())
    other["machine"]["device"] = "another GPU"
    path.write_text(json.dumps(other))
    assert gpu.known_speed(CPU, path) is None


def test_the_study_s_times_are_those_of_its_commands():
    lines = gpu.time_table("paper", cost.H200)
    pieces = [piece.name for piece in plan.pieces_of("paper") if piece.trials]
    for name in pieces:
        assert any(f"--piece {name}" in line for line in lines)
    minutes = [float(line.split()[0]) for line in lines]
    assert sum(minutes[:-1]) == pytest.approx(minutes[-1], abs=2)
    slow = replace(cost.H200, step=1.0)
    assert float(gpu.time_table("paper", slow)[-1].split()[0]) > 10 * minutes[-1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "command, said",
    [
        (["gpu"], "There is no GPU here that torch can use"),
        (["study", "--profile", "paper"], "--profile cpu is the study for a CPU; --scale tiny"),
    ],
    ids=["gpu", "study"],
)
def test_without_a_gpu_a_sentence_says_so(capsys, command, said):
    assert __main__.main(command) == __main__.REFUSED
    assert said in capsys.readouterr().err


def test_the_list_of_the_paper_profile_shows_its_commands(capsys):
    assert __main__.main(["study", "--profile", "paper", "--list"]) == 0
    assert "--piece cifar10_long --seed 1" in capsys.readouterr().out


def test_the_runs_that_are_left_and_their_time_are_said_of_each_piece(tmp_path, capsys):
    pieces = plan.pieces_of("paper")
    chosen = [one for one in pieces if one.name in ("cifar10_tables", "cifar10_long")]
    planned = [
        work.Planned(one, work.KINDS[one.kind].units(one, tmp_path, float("inf"))) for one in chosen
    ]
    units = work.each_once(planned)
    work.say_time_left(planned, units, cost.H200, 1)
    work.say_time_left(planned, work.of_seeds(units, [1]), cost.H200, 2)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("paper_cifar10_tables: 9 runs left, about 6")
    assert said[1].startswith("paper_cifar10_long: 6 runs left, about 1")
    assert said[2].startswith("paper_cifar10_tables: 3 runs left, about 1")
    # with the judgement at the end, as the command of this seed is listed
    [command] = [
        one for one in gpu.study_commands("paper", cost.H200) if one.text.endswith("long --seed 1")
    ]
    minutes = command.seconds / 60 / 2
    assert said[3] == f"paper_cifar10_long: 3 runs left, about {minutes:.1f} min"
