"""`catlib train`: from data to a judged model, stopped anywhere and going on, in one command."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

from catlib import load_data
from catlib.lab import judge, runs, train
from catlib.lab.__main__ import main
from catlib.lab.runs import Trial, build_training

DIGITS = ["train", "--data", "digits", "--model", "cnn", "--epsilon", "0.1", "--device", "cpu"]
QUICK = ["--autoattack", "0", "--images", "100"]
SMALL = [*DIGITS, *QUICK, "--passes", "2e4"]


def weights(folder):
    return torch.load(folder / "model.pt", weights_only=True)


def records(folder):
    [path] = folder.glob("*/records.csv")
    return pd.read_csv(path).drop(columns="seconds")


def test_one_command_gives_a_judged_model_and_says_how_to_load_it(tmp_path, capsys):
    out = tmp_path / "model"
    assert main([*SMALL, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "first measurements, one or two seeds; see the frontier study" in said
    assert "left: " in said and "PGD" in said and str(out / "model.pt") in said
    report = json.loads((out / "report.json").read_text())
    robust = report["measurements"]
    assert robust["accuracy"]["value"] > 0.5
    assert (out / "report.txt").read_text().strip() in said
    names = {}
    lines = said.split("To use it:")[1].strip().splitlines()
    names["images"] = load_data("digits").test(slice(100))[0]
    exec("\n".join(line.strip() for line in lines), names)
    right = (names["logits"].argmax(1) == load_data("digits").y_test[:100]).double().mean()
    assert right.item() == pytest.approx(robust["accuracy"]["value"])


def test_the_best_weights_on_held_out_images_are_kept(tmp_path, monkeypatch):
    """The best of the checks, and not the last: the evaluations are made to say so."""
    told = iter([0.3, 0.9, 0.5, 0.4, 0.1, *[0.0] * 99])
    seen = []
    genuine = runs.save_if_best

    def save(training, record, path):
        if record.robust_accuracy is not None:
            record = replace(record, robust_accuracy=next(told))
            seen.append({k: v.clone() for k, v in training.model.state_dict().items()})
        genuine(training, record, path)

    monkeypatch.setattr(train, "save_if_best", save)
    assert main([*SMALL, "--passes", "4e4", "--out", str(tmp_path)]) == 0
    assert len(seen) > 1
    ours = weights(tmp_path)
    assert all(torch.equal(ours[name], seen[1][name]) for name in ours)


class Killed(BaseException):
    """As final as SIGKILL, but in this process."""


@pytest.mark.parametrize("moment", ["before the checkpoint", "after it"])
@pytest.mark.parametrize("number", [0, 1])
def test_killed_and_resumed_it_is_the_same(tmp_path, monkeypatch, capsys, moment, number):
    monkeypatch.setattr(runs, "CHECKPOINT_SECONDS", 0.0)
    command = [*SMALL, "--passes", "5e4"]
    whole = tmp_path / "whole"
    assert main([*command, "--out", str(whole)]) == 0
    genuine = runs._History.save_checkpoint
    left = [number]

    def save(*arguments):
        if moment == "after it":
            genuine(*arguments)
        if not left[0]:
            raise Killed
        left[0] -= 1
        if moment != "after it":
            genuine(*arguments)

    killed = tmp_path / "killed"
    monkeypatch.setattr(runs._History, "save_checkpoint", save)
    with pytest.raises(Killed):
        main([*command, "--out", str(killed)])
    monkeypatch.setattr(runs._History, "save_checkpoint", genuine)
    capsys.readouterr()
    assert main([*command, "--out", str(killed)]) == 0
    assert ("Goes on after" in capsys.readouterr().out) == (number > 0 or moment == "after it")
    ours = weights(killed)
    theirs = weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    pd.testing.assert_frame_equal(records(killed), records(whole), check_exact=True)
    reports = [json.loads((one / "report.json").read_text()) for one in (killed, whole)]
    assert reports[0]["measurements"] == reports[1]["measurements"]


def test_the_same_command_again_says_that_it_is_done(tmp_path, monkeypatch, capsys):
    command = [*SMALL, "--out", str(tmp_path)]
    assert main(command) == 0
    first = capsys.readouterr().out
    with monkeypatch.context() as changed:
        changed.setattr(runs, "build_training", None)
        changed.setattr(train, "judge", None)
        assert main(command) == 0
    again = capsys.readouterr().out
    assert again.startswith(f"The training in {tmp_path} is done.")
    assert first.endswith(again.split("is done.\n")[1])
    assert main([*command, "--epsilon", "0.2"]) == 2
    assert "has a training with epsilon 0.1; this one has 0.2" in capsys.readouterr().err


def test_another_judgement_is_made_anew(tmp_path, capsys):
    command = [*SMALL, "--out", str(tmp_path)]
    assert main(command) == 0
    weights = (tmp_path / "model.pt").read_bytes()
    capsys.readouterr()
    assert main([*command[:-2], "--images", "30", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"The training in {tmp_path} is done.")
    assert "Judging the best model" in said and "Left out:" in said
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["asked"]["images"] == 30
    assert found["measurements"]["accuracy"]["images"] == 30
    assert (tmp_path / "report.txt").read_text().strip() in said
    assert (tmp_path / "model.pt").read_bytes() == weights


def test_a_finished_training_of_other_code_is_refused_or_repeated(tmp_path, monkeypatch, capsys):
    command = [*SMALL, "--out", str(tmp_path)]
    assert main(command) == 0
    plan = json.loads((tmp_path / "train.json").read_text())
    origin = tmp_path / Trial(**plan["trial"]).id / "run.json"
    written = json.loads(origin.read_text())
    written["stretches"][0]["code"]["catlib/training.py"] = "another"
    origin.write_text(json.dumps(written))
    (tmp_path / "model.pt").write_bytes(b"of the code before")
    capsys.readouterr()
    assert main(command) == 2
    assert "catlib/training.py" in capsys.readouterr().err
    assert main([*command, "--if-code-changed", "repeat"]) == 0
    assert "Judging the best model" in capsys.readouterr().out
    assert train.load_model(tmp_path), "the weights are those of the new training"


def test_minutes_are_measured_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "MEASURED_SECONDS", 0.2)
    command = [*DIGITS, *QUICK, "--minutes", "0.03", "--out", str(tmp_path)]
    assert main(command) == 0
    plan = json.loads((tmp_path / "train.json").read_text())
    assert plan["passes"] == int(60 * 0.03 * plan["passes_a_second"])
    trial = Trial(**plan["trial"])
    spent = trial.iterations * trial.sampling_number * runs.passes_a_draw(trial)
    assert 0.5 * plan["passes"] < spent <= plan["passes"]
    monkeypatch.setattr(train, "measured_speed", None)
    (tmp_path / "model.pt").unlink()
    assert main(command) == 0, "the weights are taken from the run"


def test_the_speed_is_that_of_a_training():
    trial = train.trial_for(
        train.Request("digits", "cnn", 0.1, 20_000, None, device="cpu"), load_data("digits"), 20_000
    )
    assert 100 < train.measured_speed(trial, 0.2) < 1e7


def test_a_recipe_suits_the_images(tmp_path, monkeypatch, own_images):
    grey = train.trial_for(
        train.Request("digits", "cnn", 0.1, 10**6, None), load_data("digits"), 10**6
    )
    assert (grey.steps, grey.step_size, grey.memory_bits) == (2, 0.0625, 0)
    assert grey.optimizer == "adam" and grey.guard and grey.recalibrate == 0
    assert grey.validation_size == grey.evaluation_size == 143
    checks = -(-grey.iterations // grey.evaluate_every) * 143 * train.CHECK_PASSES
    spent = grey.iterations * grey.sampling_number * 3 + checks
    assert 0.9 * 10**6 < spent <= 1.01 * 10**6
    data = load_data(own_images)
    request = train.Request(own_images, "resnet18", 8 / 255, 10**5, None)
    colour = train.trial_for(request, data, 10**5)
    assert (colour.memory_bits, colour.steps, colour.augment) == (8, 1, True)
    assert colour.step_size == pytest.approx(8 / 255, abs=1e-6) and colour.recalibrate == 512
    assert set(train.recipes()) == {"grey", "colour"}
    for recipe in train.recipes().values():
        assert recipe["source"].startswith("first measurements")


def test_own_images_and_an_own_model_are_trained_and_judged(
    tmp_path, monkeypatch, capsys, own_images
):
    """In the folder of the model; the images are found from anywhere afterwards."""
    code = (
        "from torch import nn\n"
        "def normed(data):\n"
        "    c, h, w = data.x_train.shape[1:]\n"
        "    return nn.Sequential(nn.BatchNorm2d(c), nn.Flatten(), nn.Linear(c * h * w, 2))\n"
    )
    (tmp_path / "models_to_train.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    command = ["train", "--data", "photos", "--model", "models_to_train:normed"]
    command += ["--epsilon", "8/255", "--passes", "3e4", "--autoattack", "0", "--device", "cpu"]
    assert main(command) == 0
    [folder] = (tmp_path / "runs" / "train").iterdir()
    assert folder.name == "photos-models_to_train-normed-eps0.03137-s0"
    model = train.load_model(folder)
    data = load_data("photos")
    images, labels = data.test()
    assert (model(images).argmax(1) == labels).double().mean() > 0.9
    trial = Trial(**json.loads((folder / "train.json").read_text())["trial"])
    best = torch.load(folder / trial.id / "best.pt", weights_only=True)["model"]
    ours = weights(folder)
    assert not torch.equal(ours["0.running_mean"], best["0.running_mean"]), "computed anew"
    training = build_training(trial)
    training.model.load_state_dict(best)
    expected = training.judged_model().state_dict()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--epsilon", "8"], "epsilon is 8"),
        (["--epsilon", "much"], "epsilon is 'much'; it must be a number or a fraction"),
        (["--data", "nonsense"], "dataset is 'nonsense'"),
        (["--model", "cnnn"], "model is 'cnnn'"),
        (["--model", "missing:net"], "there is no module 'missing'"),
        (["--passes", "many"], "--passes is 'many'; it must be a number of at least 1"),
        (["--passes", "200"], "passes is 160; an iteration alone takes 192"),
        (["--passes", "1000"], "1000 passes are 4 iterations of 64 images; at least 10"),
        (["--minutes", "1"], "--minutes, one of the two"),
        (["--seed", "-1"], "seed is -1"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence_and_leaves_nothing(
    tmp_path, capsys, arguments, sentence
):
    out = tmp_path / "out"
    assert main([*SMALL, "--out", str(out), *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not out.exists()


def test_a_budget_must_be_given(tmp_path, capsys):
    assert main([*DIGITS, "--out", str(tmp_path / "out")]) == 2
    assert "say how much to train" in capsys.readouterr().err
    assert main([*DIGITS, "--minutes", "-2", "--out", str(tmp_path / "out")]) == 2
    assert "--minutes is -2; it must be above 0" in capsys.readouterr().err


def test_a_training_that_diverges_is_a_sentence(tmp_path, monkeypatch, capsys):
    genuine = train.make_trial
    monkeypatch.setattr(
        train,
        "make_trial",
        lambda settings, tiny: genuine(
            settings | {"learning_rate": 1e30, "optimizer": "sgd"}, tiny
        ),
    )
    assert main([*SMALL, "--out", str(tmp_path)]) == 1
    assert "training diverged" in capsys.readouterr().err


def test_a_folder_without_a_model_and_a_damaged_plan_are_named(tmp_path, capsys):
    with pytest.raises(ValueError, match="has no model of `catlib train`"):
        train.load_model(tmp_path)
    (tmp_path / "train.json").write_text("{")
    assert main([*SMALL, "--out", str(tmp_path)]) == 2
    assert "train.json cannot be read" in capsys.readouterr().err


def test_the_judge_can_read_what_was_kept(tmp_path):
    assert main([*SMALL, "--out", str(tmp_path)]) == 0
    assert set(judge.read_weights(tmp_path / "model.pt")) == set(weights(tmp_path))
