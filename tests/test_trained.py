"""The two models that were trained beforehand: whole, as robust as their list says."""

import hashlib
import io

import pytest
import torch

from catlib import PGD, accuracy, load_data, robust_accuracy
from catlib.lab import trained
from catlib.lab.runs import Trial

needs_mnist = pytest.mark.skipif(not trained.mnist_is_found(), reason="MNIST is not found")
NAMES = list(trained.TRIALS)


def test_both_are_listed_and_small():
    assert list(trained.described()) == NAMES
    for name, facts in trained.described().items():
        file = trained.FOLDER / f"{name}.pt"
        assert file.stat().st_size < 700_000
        assert hashlib.sha256(file.read_bytes()).hexdigest() == facts["sha256"]
        assert "dirty" not in facts["revision"]


def test_the_two_trials_differ_in_the_method_alone():
    at, cat = trained.TRIALS.values()
    assert (at.method, cat.method) == ("AT", "CAT")
    assert Trial(**{**vars(at), "method": "CAT"}) == cat


@needs_mnist
@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_as_good_as_its_list_says(name):
    facts = trained.described()[name]
    model = trained.trained_model(name)
    assert not model.training
    images, labels = load_data("mnist").test(slice(None))
    assert accuracy(model, images, labels) == pytest.approx(facts["accuracy"], abs=5e-4)
    count = 500
    some = images[::20], labels[::20]
    robust = robust_accuracy(model, *some, PGD(trained.SETTINGS["epsilon"], steps=20))
    # four standard errors of so many images: a false alarm once in 16,000 runs
    share = facts["robust_accuracy"]
    assert robust == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"'mnist-free'.*mnist-at, mnist-cat"):
        trained.trained_model("mnist-free")


def test_a_file_that_was_changed_is_refused(tmp_path):
    content = bytearray((trained.FOLDER / "mnist-at.pt").read_bytes())
    content[-1] ^= 1
    (tmp_path / "mnist-at.pt").write_bytes(content)
    (tmp_path / trained.LIST).write_bytes((trained.FOLDER / trained.LIST).read_bytes())
    with pytest.raises(ValueError, match="damaged or was replaced"):
        trained.trained_model("mnist-at", tmp_path)


def test_what_is_saved_is_what_was_judged(monkeypatch, tmp_path):
    """On the digits: the list's numbers are those of the halves in the file."""
    small = Trial(iterations=20, evaluate_every=0, device="cpu")
    monkeypatch.setattr(trained, "TRIALS", {"small": small})
    trained.train_models(tmp_path)
    facts = trained.described(tmp_path)["small"]
    content = (tmp_path / "small.pt").read_bytes()
    assert hashlib.sha256(content).hexdigest() == facts["sha256"]
    halves = torch.load(io.BytesIO(content), weights_only=True)
    training = trained.build_training(small)
    training.model.load_state_dict({key: value.float() for key, value in halves.items()})
    images, labels = training.data.test(slice(None))
    assert accuracy(training.model.eval(), images, labels) == facts["accuracy"]
    assert facts["passes"] == 20 * 128 * 11
