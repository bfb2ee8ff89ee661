"""What is done on a GPU alone, tried on a CPU as far as its arithmetic goes."""

import copy
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

import catlib
from catlib.kernels import gpu
from catlib.lab import runs
from catlib.survivors import survivors

CPU = torch.device("cpu")
GPU = torch.device("cuda")  # settings can be asked for where there is none


# settings


def test_convolutions_are_tuned_on_a_gpu_and_the_setting_comes_back():
    assert not torch.backends.cudnn.benchmark
    with gpu.tuned_convolutions(CPU):
        assert not torch.backends.cudnn.benchmark
    with pytest.raises(ZeroDivisionError), gpu.tuned_convolutions(GPU):
        assert torch.backends.cudnn.benchmark
        raise ZeroDivisionError
    assert not torch.backends.cudnn.benchmark


def test_who_asks_for_deterministic_convolutions_keeps_them(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with gpu.tuned_convolutions(GPU):
        assert not torch.backends.cudnn.benchmark


def settings_of_tf32():
    return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()


@pytest.mark.parametrize("products", ["highest", "high"])
def test_float32_is_full_on_a_gpu_and_the_setting_comes_back(products):
    torch.set_float32_matmul_precision(products)
    try:
        before = settings_of_tf32()
        assert before == (True, products)
        with gpu.full_float32(CPU):
            assert settings_of_tf32() == before
        with pytest.raises(ZeroDivisionError), gpu.full_float32(GPU):
            assert settings_of_tf32() == (False, "highest")
            raise ZeroDivisionError
        assert settings_of_tf32() == before
    finally:
        torch.set_float32_matmul_precision("highest")


# weights that are cast once


class Casts(TorchDispatchMode):
    """Counts the operations that copy a tensor to another type."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function is torch.ops.aten._to_copy.default
        return function(*arguments, **(options or {}))


@pytest.fixture
def frozen(digits):
    return catlib.build_model("resnet18", digits).requires_grad_(False)


def attack_under_autocast(model, images, labels, steps, once):
    def attack():
        generator = torch.Generator().manual_seed(0)
        return catlib.PGD(0.1, steps=steps)(model, images, labels, generator=generator)

    with torch.autocast("cpu", torch.bfloat16), Casts() as casts:
        if once:
            with gpu.cast_weights(model, torch.bfloat16):
                return attack(), casts.count
        return attack(), casts.count


def test_weights_are_cast_once_an_attack_with_the_same_result(digits, frozen):
    """A ResNet-18 has 20 convolutions and a linear layer with a bias: 22 casts a step are saved."""
    images, labels = digits.test(slice(3))
    plain, _ = attack_under_autocast(frozen, images, labels, 2, once=False)
    counts = [attack_under_autocast(frozen, images, labels, n, once=False)[1] for n in (1, 2)]
    once, _ = attack_under_autocast(frozen, images, labels, 2, once=True)
    counts_once = [attack_under_autocast(frozen, images, labels, n, once=True)[1] for n in (1, 2)]
    assert torch.equal(plain, once)
    assert counts[1] - counts[0] == counts_once[1] - counts_once[0] + 22


def test_cast_weights_leave_the_model_as_it_was(conv_net, snapshot):
    model = conv_net()
    before = snapshot(model)
    parameters = dict(model.named_parameters())
    with pytest.raises(ZeroDivisionError), gpu.cast_weights(model, torch.bfloat16):
        assert model.conv.weight.dtype == model.head.bias.dtype == torch.bfloat16
        assert model.norm.weight.dtype == torch.float32
        raise ZeroDivisionError
    assert snapshot(model) == before
    assert all(parameters[name] is weight for name, weight in model.named_parameters())


def test_cast_weights_are_those_of_now_in_the_memory_of_before(conv_net):
    """A CUDA graph reads them where they were when it was captured."""
    model = conv_net()
    places = []
    for shift in (0.0, 1.0):
        with torch.no_grad():
            model.head.weight.add_(shift)
        with gpu.cast_weights(model, torch.bfloat16):
            places.append(model.head.weight.data_ptr())
            cast = model.head.weight.clone()
        assert torch.equal(cast, model.head.weight.bfloat16())
    assert places[0] == places[1]


# which images survive


def models_for(digits, classifier):
    """The classifier in float64, so that the size of a batch rounds nothing differently."""
    images, labels = digits.test(slice(150))
    return copy.deepcopy(classifier).double(), images.double(), labels


ATTACKS = {
    "linf": catlib.PGD(0.08, steps=4, restarts=2),
    "l2": catlib.PGD(0.7, steps=3, norm="l2"),
    "raw gradient": catlib.PGD(0.1, steps=3, rule="gradient", random_start=False),
    "no step": catlib.PGD(0.1, steps=0),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("batch_size", [7, 256])
def test_survivors_are_those_of_the_readable_form(digits, classifier, snapshot, name, batch_size):
    model, images, labels = models_for(digits, classifier)
    attack = ATTACKS[name]
    before = snapshot(model)
    stand = survivors(
        attack,
        model,
        images,
        labels,
        generator=seeded(),
        batch_size=batch_size,
        precision="float32",
    )
    _, broken = attack.attack_until_broken(model, images, labels, generator=seeded())
    assert torch.equal(stand, ~broken)
    assert 5 < stand.sum() < 145, "the attack must break some and leave some"
    assert snapshot(model) == before


def eager_graphs(monkeypatch):
    """From now on torch.compile captures graphs, and does not translate them; none is known yet."""
    genuine = torch.compile

    def compile(function, *, dynamic, mode=None):
        return genuine(function, dynamic=dynamic, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile)
    torch._dynamo.reset()
    counters["stats"].clear()


def seeded():
    return torch.Generator().manual_seed(0)


class LiesInBfloat16(torch.nn.Module):
    """A classifier that takes every image for one class where autocast is on."""

    def __init__(self, classifier, answers):
        super().__init__()
        self.classifier = classifier
        self.answers = answers  # (B,) what it then says

    def forward(self, x):
        logits = self.classifier(x)
        if torch.is_autocast_enabled("cpu"):
            logits = logits + 1000 * torch.nn.functional.one_hot(self.answers[: len(x)], 10)
        return logits


def test_an_image_is_broken_by_a_verdict_in_float32_alone(digits, classifier):
    """In bfloat16 every iterate seems misclassified; an attack of radius 0 breaks nothing more."""
    images, labels = digits.test(slice(100))
    right = classifier(images).argmax(1) == labels
    liar = LiesInBfloat16(classifier, (labels[right] + 1) % 10)
    stand = survivors(catlib.PGD(0.0, steps=3), liar, images, labels)
    assert torch.equal(stand, right)
    assert 50 < stand.sum() < 100


def test_compiled_steps_with_cast_weights_need_one_graph(digits, monkeypatch):
    """Neither other weights nor another model of the same form need a second one."""
    eager_graphs(monkeypatch)
    images, labels = digits.test(slice(16))
    attack = catlib.PGD(0.1, steps=2, compile=True)
    results = []
    for seed in (0, 1, 0):
        model = catlib.build_model("cnn", digits, seed=seed)
        with torch.autocast("cpu", torch.bfloat16), gpu.cast_weights(model, torch.bfloat16):
            results.append(attack(model, images, labels, generator=seeded(), check=False))
        assert counters["stats"]["unique_graphs"] == 1
    assert torch.equal(results[0], results[2]) and not torch.equal(results[0], results[1])


def test_an_image_survives_by_verdicts_in_float32_alone(digits, classifier):
    """In bfloat16 no iterate seems misclassified; those after the last step are judged anew."""
    images, labels = digits.test(slice(100))
    right = classifier(images).argmax(1) == labels
    liar = LiesInBfloat16(classifier, labels[right])
    attack = catlib.PGD(0.2, steps=1, rule="sign")
    stand = survivors(attack, liar, images, labels, generator=seeded())
    # the lie takes the gradient away, so the last iterate is the random start
    start = attack._start(images, None, seeded())
    assert torch.equal(stand, right & (classifier(start).argmax(1) == labels))
    assert stand.sum() < right.sum()


def test_robust_accuracy_in_bfloat16_is_close(digits, classifier):
    images, labels = digits.test()
    attack = catlib.PGD(0.08, steps=10)
    plain = catlib.robust_accuracy(classifier, images, labels, attack)
    fast = catlib.robust_accuracy(classifier, images, labels, attack, precision="bfloat16")
    assert 0.2 < plain < 0.8 and abs(fast - plain) <= 3 / len(images)


def test_compiled_batches_are_of_one_size_and_of_one_graph(digits, classifier, monkeypatch):
    """150 images in batches of 64, survivors of every number: one graph, and no other verdict."""
    model, images, labels = models_for(digits, classifier)
    eager_graphs(monkeypatch)
    options = {"batch_size": 64, "precision": "float32"}
    attack = ATTACKS["linf"]
    for one in (model, copy.deepcopy(model)):
        stand = survivors(attack, one, images, labels, generator=seeded(), compile=True, **options)
        _, broken = attack.attack_until_broken(model, images, labels, generator=seeded())
        assert torch.equal(stand, ~broken)
        assert counters["stats"]["unique_graphs"] == 1


def test_survivors_refuse_an_attack_whose_result_depends_on_the_batch(digits, classifier):
    images, labels = digits.test(slice(4))
    with pytest.raises(ValueError, match="batch_norm is 'train'"):
        survivors(catlib.PGD(0.1, batch_norm="train"), classifier, images, labels)


def test_a_logit_that_is_not_finite_is_no_survival(digits, classifier):
    images, labels = digits.test(slice(60))

    class Broken(torch.nn.Module):
        def forward(self, x):
            logits = classifier(x)
            return torch.where(x[:, 0, 0, :1] > 0.02, torch.nan, logits)

    attack = catlib.PGD(0.05, steps=3)
    stand = survivors(attack, Broken(), images, labels, generator=seeded(), precision="float32")
    _, broken = attack.attack_until_broken(Broken(), images, labels, generator=seeded())
    assert torch.equal(stand, ~broken) and not stand.all() and stand.any()


def test_the_precision_of_crafting_is_checked(digits, classifier):
    images, labels = digits.test(slice(4))
    with pytest.raises(ValueError, match="precision is 'half'; it must be one of float32, bf"):
        catlib.robust_accuracy(classifier, images, labels, catlib.PGD(0.1), precision="half")


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_on_a_cpu_evaluations_stay_in_float32(digits, monkeypatch, precision):
    asked = []
    monkeypatch.setattr(
        "catlib.training.robust_accuracy", lambda *_, **options: asked.append(options) or 0.5
    )
    sampler = catlib.UniformSampler(digits.y_train)
    training = catlib.Training(
        catlib.build_model("cnn", digits),
        digits,
        sampler,
        catlib.PGD(0.1),
        device="cpu",
        precision=precision,
        compile=True,
    )
    training.evaluate()
    assert asked == [{"precision": "float32", "compile": False}]


def test_compiling_is_not_part_of_the_first_run_s_time(tmp_path, monkeypatch, same):
    """It happens along another training, once for each kind of run, and changes no number."""
    eager_graphs(monkeypatch)
    monkeypatch.setattr(runs, "_compiled_kinds", set())
    trial = runs.Trial(
        iterations=2, sampling_number=16, steps=1, evaluate_every=1, evaluation_size=20,
        evaluation_steps=1, device="cpu", compile=True,
    )  # fmt: skip
    alone = runs.build_training(trial)
    expected = [replace(record, seconds=0) for record in runs.records_of(trial, alone)]
    graphs = counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    counters["stats"].clear()
    compiled_before = []
    seen = []
    for seed in (0, 1):
        compiled_before.append(counters["stats"]["unique_graphs"])
        folder = runs.run(
            replace(trial, seed=seed),
            tmp_path,
            observe=lambda *_: seen.append(counters["stats"]["unique_graphs"]),
        )
        assert set(seen) == {graphs}, "all graphs are there before the first iteration"
        if seed == 0:
            loss = pd.read_csv(folder / "records.csv").loss
            assert loss.tolist() == [record.loss for record in expected]
    assert compiled_before == [0, graphs]


def test_training_tunes_convolutions_and_evaluation_computes_in_full(digits, monkeypatch):
    """As on a GPU: the settings are asked of the model at each of its forward passes."""
    monkeypatch.setattr(
        "catlib.training.tuned_convolutions",
        lambda _, enabled: gpu.tuned_convolutions(GPU, enabled),
    )
    monkeypatch.setattr("catlib.evaluation.full_float32", lambda _: gpu.full_float32(GPU))
    seen = []
    model = catlib.build_model("cnn", digits)
    model.register_forward_pre_hook(
        lambda *_: seen.append((torch.backends.cudnn.benchmark, *settings_of_tf32()))
    )
    sampler = catlib.UniformSampler(digits.y_train)
    training = catlib.Training(model, digits, sampler, catlib.PGD(0.1, steps=2), device="cpu")
    next(training)
    assert set(seen) == {(True, True, "highest")}
    seen.clear()
    training.evaluate()
    assert set(seen) == {(False, False, "highest")}
