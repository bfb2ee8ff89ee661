"""Images held out of training: which they are, what is judged on them, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch

from catlib import accuracy, build_model, load_data
from catlib.data import subset
from catlib.lab.baselines import NFGSM
from catlib.lab.runs import Trial, build_training, judged_images, run
from catlib.lab.study.tables import evaluation_lines

HELD = Trial(
    validation_size=100,
    train_size=500,
    iterations=4,
    sampling_number=32,
    steps=1,
    evaluate_every=2,
    evaluation_size=100,
    evaluation_steps=1,
    device="cpu",
)


def test_they_are_spread_over_the_training_images_and_the_same_for_every_seed(digits):
    """Against a plain selection; no image is lost, and none is on both sides."""
    first = digits.x_train[:500]
    labels = digits.y_train[:500]
    places = set(subset(labels, 100, "spread").tolist())
    rest = [place for place in range(500) if place not in places]
    for seed in (0, 1):
        data = build_training(replace(HELD, seed=seed)).data
        assert torch.equal(data.x_test, first[sorted(places)])
        assert torch.equal(data.y_test, labels[sorted(places)])
        assert torch.equal(data.x_train, first[rest])
        assert torch.equal(data.y_train, labels[rest])
    counts = torch.bincount(labels[sorted(places)])
    assert (counts - torch.bincount(labels) / 5).abs().max() <= 1


def test_evaluations_use_them_and_the_final_judgement_uses_test_images(tmp_path, digits):
    found = []

    def observe(training, record):
        if record.accuracy is not None:
            found.append((record.accuracy, accuracy(training.model, *training.data.test())))

    trial = replace(HELD, final_restarts=1, final_size=60, evaluation_subset="spread")
    folder = run(trial, tmp_path, observe=observe)
    assert len(found) == 2 and all(said == counted for said, counted in found)
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    model = build_model("cnn", digits)
    model.load_state_dict(saved["training"]["model"])
    images, labels = digits.test(subset(digits.y_test, 60, "spread"))
    final = json.loads((folder / "run.json").read_text())["final"]
    assert final["accuracy"] == accuracy(model, images, labels)
    ours = judged_images(trial, build_training(trial), 60)
    assert torch.equal(ours[0], images) and torch.equal(ours[1], labels)


def test_without_them_nothing_changes():
    plain = replace(HELD, validation_size=0)
    assert plain.id == Trial(**vars(plain)).id != HELD.id
    training = build_training(plain)
    assert torch.equal(training.data.x_test, load_data("digits").x_test)
    assert torch.equal(judged_images(plain, training, 9)[0], training.test_images(9)[0])


def test_a_table_says_on_which_images_its_numbers_are():
    assert "held-out training images" in evaluation_lines([HELD])["evaluation"]
    assert "test images" in evaluation_lines([replace(HELD, validation_size=0)])["evaluation"]
    assert "test images" in evaluation_lines([replace(HELD, final_restarts=1)])["final"]


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"validation_size": 480}, "leaves 20; at least 32 must be left"),
        ({"validation_size": 5000, "train_size": None}, "of 1437 training images, which leaves 0"),
        ({"train_size": 40, "validation_size": 39, "sampling_number": 1}, "none of the class"),
    ],
)
def test_too_few_images_left_are_refused_before_anything_is_written(tmp_path, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(replace(HELD, **settings), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"validation_size": -1}, "validation_size is -1; it must be an integer of at least 0"),
        ({"validation_size": 500}, "validation_size is 500 and train_size is 500"),
        ({"noise": 1.0}, "noise is 1.0 with crafting 'pgd'; only 'n-fgsm' has it"),
        ({"noise": -1.0, "crafting": "n-fgsm"}, "noise is -1.0; it must be a finite number"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        replace(HELD, **settings)


def test_the_noise_of_n_fgsm_is_a_setting():
    trial = replace(HELD, crafting="n-fgsm", epsilon=0.2)
    assert build_training(trial).attack == NFGSM(0.2, 0.2)
    assert build_training(replace(trial, noise=0.5)).attack == NFGSM(0.2, 0.2, noise=0.5)
