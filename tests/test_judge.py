"""A model of one's own and what is said of it: each number equals that measured by hand."""

import argparse
import copy
import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pyautoattack
import pytest
import torch
from scipy.stats import binom
from torch import nn

from catlib import PGD, Data, accuracy, build_model, robust_accuracy
from catlib.lab import judge as room
from catlib.lab.judge import calibration_error, judge, judge_command, measurements, together
from catlib.lab.paths import DOCS
from catlib.lab.runs import Trial, build_training, run
from catlib.own import check_classifier

EPSILON = 0.15
SCALED = [f"pgd_20_logits_x{factor}" for factor in ("0.1", "1", "10", "100")]

MODELS = """
import torch
from torch import nn

number = 3
itself = nn.Flatten()


class Net(nn.Module):
    def __init__(self, change=lambda logits: logits, classes=10):
        super().__init__()
        self.layer = nn.Linear(64, classes)
        self.change = change

    def forward(self, images):
        return self.change(self.layer(images.flatten(1)))


class Guarded(Net):
    def forward(self, images):
        assert images.shape[1] == 3, "three channels, please"
        return super().forward(images)


def good(data):
    return Net(classes=len(data.classes))


def no_argument():
    return Net()


def returns_nothing(data):
    Net()


def text(data):
    return "a net"


def tuple_of_logits(data):
    return Net(lambda logits: (logits, None))


def flat(data):
    return Net(lambda logits: logits.flatten())


def few_classes(data):
    return Net(classes=7)


def whole_numbers(data):
    return Net(lambda logits: logits.long())


def not_finite(data):
    return Net(lambda logits: logits / 0)


def detached(data):
    return Net(lambda logits: logits.detach())


def constant(data):
    return Net(lambda logits: logits.detach() + torch.zeros(10, requires_grad=True))


def guarded(data):
    return Guarded()
"""


@pytest.fixture
def own_models(tmp_path, monkeypatch):
    """The name of a module in the current folder: a new one, since Python remembers imports."""
    name = "own_" + tmp_path.name.replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODELS)
    (tmp_path / f"{name}_broken.py").write_text("import no_such_package_at_all")
    monkeypatch.chdir(tmp_path)
    return name


@pytest.fixture
def quick_autoattack(monkeypatch):
    """AutoAttack with its four attacks cut down to a second; every call's arguments are kept."""
    calls = []

    class Quick(pyautoattack.AutoAttack):
        def __init__(self, model, **arguments):
            calls.append(arguments)
            super().__init__(model, **arguments)
            for attack in (self.apgd, self.apgd_targeted, self.fab):
                attack.n_iter = 10
            self.square.n_queries = 50

    monkeypatch.setattr(pyautoattack, "AutoAttack", Quick)
    return calls


def three_of(data, classes=3):
    """The data of the first few classes alone."""
    train = data.y_train < classes
    test = data.y_test < classes
    return replace(
        data,
        x_train=data.x_train[train],
        y_train=data.y_train[train],
        x_test=data.x_test[test],
        y_test=data.y_test[test],
        classes=data.classes[:classes],
    )


class Net(nn.Module):
    """A linear model whose logits can be changed on their way out."""

    def __init__(self, change=lambda logits: logits, classes=10):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Linear(64, classes)
        self.change = change

    def forward(self, images):
        return self.change(self.layer(images.flatten(1)))


# A model of one's own


def test_a_model_of_ones_own_is_built_under_the_seed(own_models, digits, global_rng_untouched):
    before = list(sys.path)
    first, again, other = (
        build_model(f"{own_models}:good", digits, seed=seed).layer.weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (10, 64)
    assert sys.path == before


def test_a_model_of_ones_own_may_lie_in_a_folder_and_is_trained_like_any(own_models, tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / f"{own_models}_deep.py").write_text(MODELS)
    name = f"inside.{own_models}_deep:good"
    training = build_training(Trial(model=name, iterations=2, evaluate_every=0))
    assert [record.iteration for record in training] == [1, 2]


MISTAKES = {
    "no such module": ("nowhere_at_all:net", "there is no module 'nowhere_at_all' in"),
    "the name of a file": ("{own}.py:good", "without its .py"),
    "no such function": ("{own}:godo", "has no function 'godo'"),
    "half a name": ("{own}:", "is named module:function"),
    "a module that fails": ("{own}_broken:net", "could not be imported: ModuleNotFoundError"),
    "not a function": ("{own}:number", "is an int; it must be a function"),
    "a model itself": ("{own}:itself", "is a model, a Flatten; it must be a function that returns"),
    "a function without argument": ("{own}:no_argument", r"define it as no_argument\(data\)"),
    "nothing returned": ("{own}:returns_nothing", "returned None; it must return a torch.nn.Mod"),
    "something else returned": ("{own}:text", "returned a str; it must return a torch.nn.Module"),
    "a tuple of logits": ("{own}:tuple_of_logits", r"returns a tuple for a .*\(B, K\)"),
    "logits without batch": ("{own}:flat", r"returns \(40,\) for 4 images"),
    "too few classes": ("{own}:few_classes", "returns 7 logits an image, and the data have 10"),
    "whole numbers": ("{own}:whole_numbers", "returns torch.int64; logits must be floating"),
    "not finite": ("{own}:not_finite", "logits that are not finite"),
    "no gradient at all": ("{own}:detached", "lets no gradient reach the images"),
    "no gradient to the images": ("{own}:constant", "lets no gradient reach the images"),
    "other images": ("{own}:guarded", r"fails on images \(4, 1, 8, 8\).* three channels, please"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_in_a_model_of_ones_own_gets_a_sentence(mistake, own_models, digits):
    name, sentence = MISTAKES[mistake]
    with pytest.raises(ValueError, match=sentence):
        build_model(name.format(own=own_models), digits)


def test_the_check_leaves_the_model_as_it_was(conv_net, digits, snapshot, global_rng_untouched):
    model = conv_net().train()
    before = snapshot(model)
    check_classifier(model, digits)
    assert snapshot(model) == before


# The measurements


def test_each_number_equals_the_measurement_made_by_hand(classifier, digits, quick_autoattack):
    report = judge(
        classifier, digits, epsilon=EPSILON, images=80, autoattack=12, seed=3, progress=False
    )
    images, labels = digits.test(slice(80))
    strong = PGD(EPSILON, steps=20, restarts=10)
    once = PGD(EPSILON, steps=20)
    value = report.table.value
    assert value["accuracy"] == accuracy(classifier, images, labels)
    assert value["pgd_20_10"] == robust_accuracy(classifier, images, labels, strong, seed=3)
    classes = [
        robust_accuracy(classifier, images[labels == c], labels[labels == c], once, seed=3)
        for c in range(10)
    ]
    assert value["worst_class_pgd_20"] == min(classes)
    for factor in (0.1, 1, 10, 100):
        scaled = nn.Sequential(classifier, Times(factor))
        by_hand = robust_accuracy(scaled, images, labels, once, seed=3)
        assert value[f"pgd_20_logits_x{factor:g}"] == by_hand
    attack = pyautoattack.AutoAttack(classifier, norm="Linf", eps=EPSILON, seed=3)
    with torch.random.fork_rng():
        adversarial, _ = attack.run_standard_evaluation(images[:12], labels[:12])
    assert value["autoattack"] == accuracy(classifier, adversarial, labels[:12])
    assert 0 < value["autoattack"] < value["accuracy"]
    assert dict(report.table.images) == dict.fromkeys(value.index, 80) | {"autoattack": 12}


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, logits):
        return self.factor * logits


@pytest.mark.slow
@pytest.mark.no_device("its model is on the CPU")
def test_autoattack_is_the_standard_one_at_full_length(classifier, digits):
    report = judge(classifier, digits, epsilon=0.1, images=8, autoattack=8, progress=False)
    images, labels = digits.test(slice(8))
    standard = pyautoattack.AutoAttack(classifier, norm="Linf", eps=0.1, version="standard", seed=0)
    with torch.random.fork_rng():
        adversarial, _ = standard.run_standard_evaluation(images, labels)
    value = report.table.value
    assert value["autoattack"] == accuracy(classifier, adversarial, labels)
    assert 0 < value["autoattack"] < value["accuracy"]


def test_autoattack_is_asked_for_the_standard_attacks_in_the_same_ball(
    classifier, digits, quick_autoattack
):
    judge(classifier, digits, epsilon=0.2, images=20, autoattack=4, seed=5, progress=False)
    judge(classifier, digits, epsilon=2.0, norm="l2", images=20, autoattack=4, progress=False)
    linf, l2 = quick_autoattack
    assert linf.get("version", "standard") == "standard"
    assert (linf["norm"], linf["eps"], linf["seed"]) == ("Linf", 0.2, 5)
    assert (l2["norm"], l2["eps"]) == ("L2", 2.0)


def test_autoattack_in_parts_counts_each_image_once(classifier, digits, quick_autoattack):
    images, labels = digits.test(slice(30))
    attack = PGD(EPSILON, steps=2)
    parts = {
        name: measure()
        for name, measure in measurements(classifier, images, labels, attack, autoattack=20, part=8)
        if name.startswith("autoattack")
    }
    assert list(parts) == ["autoattack_0", "autoattack_8", "autoattack_16"]
    right = 8 * parts["autoattack_0"] + 8 * parts["autoattack_8"] + 4 * parts["autoattack_16"]
    assert together(parts, 20) == {"autoattack": pytest.approx(right / 20)}
    assert right == pytest.approx(round(right))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_autoattack_judges_few_classes(classes, digits, quick_autoattack):
    """It aims at nine wrong classes, and its targeted loss needs a fourth largest logit."""
    few = three_of(digits, classes)
    report = judge(
        build_model("cnn", few), few, epsilon=0.01, images=40, autoattack=6, progress=False
    )
    assert 0 <= report.table.value["autoattack"] <= 1
    left_out = "".join(report.left_out)
    assert ("APGD-T: its loss needs 4 classes" in left_out) == (classes < 4)


@pytest.mark.parametrize(("side", "fits"), [(8, True), (12, False), (19, False), (20, True)])
def test_autoattack_in_l2_leaves_out_an_attack_that_fails_at_this_size(
    side, fits, quick_autoattack
):
    """Square fails for images of 12 or 19 pixels; the others are asked, and the report says so."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 1, side, side, generator=generator)
    y = (x.mean((1, 2, 3)) > x.mean()).long() + 2 * (torch.arange(40) % 2)
    data = Data.from_tensors(x, y, x, y)
    report = judge(build_model("cnn", data), data, epsilon=0.5, norm="l2", autoattack=6)
    said = [line for line in report.left_out if "Square" in line]
    assert len(said) == (not fits)
    assert f"{side} x {side}" in "".join(said) or fits
    assert report.table.loc["autoattack", "images"] == 6


def test_a_model_at_the_level_of_guessing_is_not_called_robust(digits):
    class Constant(nn.Module):
        def forward(self, x):
            return torch.eye(10)[3] + 0 * x.flatten(1).sum(1, keepdim=True)

    report = judge(Constant(), digits, epsilon=0.1, autoattack=0, images=100)
    assert any("the model has learned nothing that counts here" in line for line in report.findings)


def test_the_calibration_error_is_that_of_a_plain_loop(classifier, digits):
    images, labels = digits.test()
    with torch.no_grad():
        probabilities = classifier(images).softmax(1)
    bins = [[] for _ in range(15)]
    for row, label in zip(probabilities, labels, strict=True):
        confidence = row.max().item()
        bins[min(int(confidence * 15), 14)].append((confidence, row.argmax() == label))
    error = 0.0
    for inside in filter(None, bins):
        confidence = sum(c for c, _ in inside) / len(inside)
        right = sum(bool(r) for _, r in inside) / len(inside)
        error += abs(confidence - right) * len(inside) / len(labels)
    assert calibration_error(classifier, images, labels) == pytest.approx(error, abs=1e-6)
    assert error > 0.01


def test_the_model_is_as_it_was_and_so_is_the_random_state(
    classifier, digits, snapshot, quick_autoattack, global_rng_untouched
):
    model = copy.deepcopy(classifier).train()  # right often enough for every attack to begin
    model[1][0].eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model[1][0].bias.requires_grad_(False)
    before = snapshot(model)
    judge(model, digits, epsilon=0.01, images=20, autoattack=8, progress=False)
    assert snapshot(model) == before


# What casts doubt


def findings_of(model, digits, **options):
    options = {"epsilon": EPSILON, "images": 60, "autoattack": 0, "progress": False} | options
    return " ".join(judge(model, digits, **options).findings)


def test_a_saturated_loss_is_found_by_the_scaled_logits(classifier, digits):
    assert "believe the smaller number" not in findings_of(classifier, digits)
    saturated = nn.Sequential(classifier, Times(30))
    assert re.search(
        r"PGD leaves \S+ robust, but only \S+ when the logits are multiplied by 0.1",
        findings_of(saturated, digits),
    )


@pytest.mark.parametrize(("right", "count"), [(39, 39), (31, 39), (0, 25), (200, 399)])
@pytest.mark.parametrize("name", ["autoattack", "pgd_20_10"])
def test_few_images_are_said_to_be_few_and_where_the_robust_accuracy_may_lie(name, right, count):
    autoattack = count if name == "autoattack" else 0
    attack = PGD(EPSILON, steps=20, restarts=10)
    values = {"pgd_20_10": 1.0} | {name: right / count}
    [found] = room._findings_of_few_images(values, attack, autoattack, count)
    assert found.startswith(f"{count} images are few: {name} is {right} of them")
    low, high = (float(x) / 100 for x in re.search(r"be (\S+)% to (\S+)%", found).groups())
    # the ends are the shares for which what was seen is just not in the tail of 2.5 %
    assert low == 0 if right == 0 else abs(binom.sf(right - 1, count, low) - 0.025) < 0.002
    assert high == 1 if right == count else abs(binom.cdf(right, count, high) - 0.025) < 0.002
    assert room._findings_of_few_images(values, attack, 0, 400) == []


def test_attacks_that_break_nothing_are_said_to_be_too_weak(classifier, digits):
    said = "no attack broke a single image"
    assert said in findings_of(classifier, digits, epsilon=1e-6)
    assert said not in findings_of(classifier, digits)
    x, y = digits.test(slice(60))
    right = accuracy(classifier, x, y)
    values = dict.fromkeys(["accuracy", "pgd_20_10", *SCALED, "autoattack"], right)
    attack = PGD(EPSILON, steps=20, restarts=10)
    assert room._findings_of_weak_attacks(values, attack, 60, classifier, x, y)
    for name in ("pgd_20_10", *SCALED, "autoattack"):
        broken = values | {name: right - 1 / 60}
        assert not room._findings_of_weak_attacks(broken, attack, 60, classifier, x, y), name


def test_the_findings_of_check_model_are_in_the_report_and_no_warnings(digits):
    found = findings_of(Net(lambda logits: logits.softmax(1)), digits)
    assert "looks like probabilities" in found
    assert "eval mode" not in found  # it is put there, and back again


def test_what_autoattack_warns_of_is_in_the_report_once(digits, quick_autoattack, capfd):
    found = findings_of(
        Net(lambda logits: logits.softmax(1)), digits, images=300, autoattack=260, epsilon=0.01
    )
    assert found.count("AutoAttack says: it seems that the output is a probability") == 1
    assert "probability" not in capfd.readouterr().err


def test_without_the_package_autoattack_is_left_out_and_the_report_says_so(
    classifier, digits, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    report = judge(classifier, digits, epsilon=EPSILON, images=20, progress=False)
    assert "autoattack" not in report.table.index
    assert "pyautoattack" not in report.versions
    assert "pip install pyautoattack" in str(report)


# The report


def test_the_report_reads_as_a_table_and_as_json(classifier, digits, tmp_path):
    torch.save(classifier.state_dict(), tmp_path / "net.pt")
    report = judge(
        "cnn",
        "digits",
        weights=tmp_path / "net.pt",
        epsilon=0.1,
        images=50,
        autoattack=0,
        progress=False,
    )
    text = str(report)
    content = json.loads(report.to_json())
    assert "epsilon 0.1" in text
    assert "autoattack is 0" in text
    for name, row in report.table.iterrows():
        assert re.search(rf"^{re.escape(name)} +{row.value:.4f} +{row.images} ", text, re.M)
        assert content["measurements"][name]["value"] == row.value
    assert content["weights"] == str(tmp_path / "net.pt")
    assert content["measurements"]["accuracy"]["value"] == accuracy(
        classifier, *digits.test(slice(50))
    )


def test_the_bar_names_each_measurement_and_the_time_left(classifier, digits, capsys):
    judge(classifier, digits, epsilon=EPSILON, images=20, autoattack=0)
    shown = capsys.readouterr().err
    for number, name in enumerate(("accuracy", "pgd_20_10", "worst_class_pgd_20"), 1):
        assert re.search(rf"gone, \S+ left: {name}, {number} of 8", shown)
    assert "100%" in shown
    judge(classifier, digits, epsilon=EPSILON, images=20, autoattack=0, progress=False)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"epsilon": 0}, "epsilon is 0; it must be above 0"),
        ({"epsilon": "8/255"}, "epsilon is '8/255'"),
        ({"epsilon": 8}, "epsilon is 8; .* below 1, .* Did you mean 8/255?"),
        ({"norm": "l1"}, "norm is 'l1'"),
        ({"images": 0}, "images is 0; it must be an integer of at least 1"),
        ({"images": 2.5}, "images is 2.5"),
        ({"autoattack": -1}, "autoattack is -1"),
        ({"model": Net(classes=7)}, "Net returns 7 logits"),
        ({"width": 16}, "width is 16 and model is 'Sequential'; only resnet18 has a width"),
        ({"model": "resnet18", "width": 4}, "width is 4; it must be an integer of at least 8"),
        ({"data": "digist"}, "dataset is 'digist'"),
    ],
)
def test_what_cannot_be_judged_is_said_at_once(options, sentence, classifier, digits, monkeypatch):
    monkeypatch.setattr(room, "measurements", None)  # nothing is measured before
    arguments = {"model": classifier, "data": digits, "epsilon": 0.1} | options
    with pytest.raises(ValueError, match=sentence):
        judge(arguments.pop("model"), arguments.pop("data"), **arguments)


# Weights


def test_weights_are_read_from_a_state_dict_and_from_what_a_run_leaves(tmp_path, digits):
    folder = run(Trial(iterations=2, evaluate_every=1, evaluation_size=10), tmp_path)
    trained = torch.load(folder / "checkpoint.pt", weights_only=True)["training"]["model"]
    torch.save(trained, tmp_path / "alone.pt")
    torch.save({"model": trained, "robust_accuracy": 0.5, "iteration": 2}, tmp_path / "best.pt")
    for weights in (
        folder,
        folder / "checkpoint.pt",
        tmp_path / "best.pt",
        str(tmp_path / "alone.pt"),
        trained,
    ):
        model = build_model("cnn", digits, seed=9)
        room.load_weights(model, weights)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, trained[name])


def test_wrong_weights_get_a_sentence_and_change_nothing(tmp_path, digits, snapshot):
    model = build_model("cnn", digits)
    before = snapshot(model)
    good = model.state_dict()
    torch.save(model, tmp_path / "whole.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    (tmp_path / "damaged.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:500])
    (tmp_path / "text.pt").write_text("weights")
    first = "1.0.weight"
    torch.save({k: v for k, v in good.items() if k != first}, tmp_path / "lacks.pt")
    torch.save(good | {"head": torch.zeros(1)}, tmp_path / "more.pt")
    torch.save(good | {first: torch.zeros(2, 1, 4, 4)}, tmp_path / "shape.pt")
    sentences = {
        "absent.pt": "there is no file",
        "whole.pt": r"not opened, since that could run code.*torch.save\(model.state_dict",
        "list.pt": "has no state dict",
        "numbers.pt": "has no state dict",
        "damaged.pt": "is damaged",
        "text.pt": "is damaged",
        "lacks.pt": f"does not fit the model: it lacks {first}",
        "more.pt": "the model does not have head",
        "shape.pt": rf"it has {first} \(2, 1, 4, 4\) instead of \(16, 1, 4, 4\)",
    }
    for file, sentence in sentences.items():
        with pytest.raises(ValueError, match=sentence):
            room.load_weights(model, tmp_path / file)
    assert snapshot(model) == before


# The command and the page about it


def options_of(*arguments):
    """What the command line of the laboratory hands to judge_command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--width", type=int)
    parser.add_argument("--weights")
    parser.add_argument("--data", required=True)
    parser.add_argument("--epsilon", required=True)
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--images", type=int)
    parser.add_argument("--autoattack", type=int, default=1000)
    parser.add_argument("--json")
    return parser.parse_args(arguments)


def test_the_command_prints_the_report_and_writes_it(own_models, tmp_path, capsys, digits):
    torch.save(build_model(f"{own_models}:good", digits).state_dict(), "net.pt")
    line = f"--model {own_models}:good --weights net.pt --data digits --epsilon 8/255 --images 40"
    options = options_of(*shlex.split(line), "--autoattack", "0", "--json", "report.json")
    assert judge_command(options) == 0
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["epsilon"] == 8 / 255
    shown = capsys.readouterr()
    assert f"{content['measurements']['pgd_20_10']['value']:.4f}" in shown.out
    assert shown.err == "", "no bar without a terminal"


def test_a_slim_resnet_is_judged_by_the_width_that_it_was_trained_with(tmp_path, capsys, digits):
    torch.save(build_model("resnet18", digits, width=8).state_dict(), tmp_path / "slim.pt")
    line = f"--model resnet18 --weights {tmp_path}/slim.pt --data digits --epsilon 0.1 --images 4"
    assert judge_command(options_of(*shlex.split(line), "--autoattack", "0", "--width", "8")) == 0
    assert capsys.readouterr().out.startswith("resnet18 of width 8, weights of")
    assert judge_command(options_of(*shlex.split(line), "--autoattack", "0")) == 2
    assert "does not fit the model" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"model": "cnn"}, "--model cnn alone has random weights; add --weights FILE."),
        ({"model": "nowhere:net"}, "there is no module 'nowhere'"),
        ({"weights": "absent.pt"}, "there is no file absent.pt"),
        ({"data": "digist"}, "'digist'"),
        ({"epsilon": "8/0"}, "epsilon is '8/0'; it must be a number or a fraction"),
        ({"epsilon": "eight"}, "epsilon is 'eight'"),
        ({"norm": "l1"}, "norm is 'l1'"),
        ({"images": 0}, "images is 0"),
        ({"json": "no/folder/report.json"}, "there is no such folder"),
    ],
)
def test_the_command_ends_with_a_sentence(change, sentence, own_models, capsys):
    options = options_of("--model", f"{own_models}:good", "--data", "digits", "--epsilon", "0.1")
    vars(options).update(change)
    assert judge_command(options) == 2
    error = capsys.readouterr().err
    assert error.startswith("judge: ")
    assert sentence in error


def test_the_page_runs_as_it_stands(tmp_path, monkeypatch, capsys, quick_autoattack):
    page = (DOCS / "judge.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        first = block.splitlines()[0]
        if first.endswith(".py"):
            Path(first.removeprefix("# ")).write_text(block)
        else:
            exec(block, names)
    del sys.modules["my_models"]  # so that the command imports it anew
    printed = capsys.readouterr().out
    assert names["report"].table.value["accuracy"] > 0.8
    for row in re.findall(r"^\| `(\w[\w.]*)`", page, re.MULTILINE):
        assert f"\n{row} " in printed
    [command] = re.findall(r"^catlib judge (.*)$", page, re.MULTILINE)
    assert judge_command(options_of(*shlex.split(command))) == 0
    del sys.modules["my_models"]  # tests that follow expect that there is no such module
    again = json.loads(Path("report.json").read_text())["measurements"]
    assert again == names["report"].table.to_dict(orient="index")
