"""Protocol 1: it learns, repeats itself, goes on where it stopped, and counts what it spends."""

import io
import signal
import time
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from catlib import (
    PGD,
    CaseSampler,
    CropAndFlip,
    PerturbationMemory,
    Training,
    UniformSampler,
    accuracy,
    build_model,
    crop_and_flip,
    information_gain,
    recalibrated,
    robust_accuracy,
)
from catlib.data import subset

ATTACK = PGD(0.1, steps=2)


def make(
    data,
    *,
    tree=None,
    sampler=None,
    attack=ATTACK,
    adam=False,
    schedule=False,
    bits=None,
    device="cpu",
    **options,
):
    model = build_model("cnn", data, seed=1).to(device)
    if sampler is None:
        sampler = CaseSampler(data.y_train.to(device), 32, tree=tree, seed=1)
    optimizer = (
        torch.optim.Adam(model.parameters(), 1e-3)
        if adam
        else torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 40) if schedule else None
    if bits:
        options["memory"] = PerturbationMemory(*memory_of(data), bits=bits)
    return Training(
        model, data, sampler, attack, optimizer, scheduler=scheduler, device=device, **options
    )


def memory_of(data):
    """The first arguments of a memory for these data and ATTACK."""
    return len(data.x_train), data.x_train.shape[1:], ATTACK.epsilon


def take(training, n):
    return [next(training) for _ in range(n)]


def without_seconds(records):
    return [
        (r.iteration, r.examples, r.passes, r.loss, r.coverage, r.accuracy, r.robust_accuracy)
        for r in records
    ]


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# it learns


@pytest.mark.parametrize("method", ["AT", "CAT"])
def test_learns_to_be_robust(digits, classifier, method, device):
    """From chance to at least 60 % of test digits standing at epsilon 0.1.

    Ordinary training leaves nearly none.
    """
    sampler = (UniformSampler if method == "AT" else CaseSampler)(digits.y_train, 128, seed=0)
    training = Training(
        build_model("cnn", digits), digits, sampler, PGD(0.1, steps=5), iterations=80, device=device
    )
    images, labels = training.data.test()
    judge = PGD(0.1, steps=10)
    before = robust_accuracy(training.model, images, labels, judge)
    *_, record = training
    after = robust_accuracy(training.model, images, labels, judge)
    assert record.iteration == 80 and before < 0.2 and after > 0.6
    assert robust_accuracy(classifier, *digits.test(), judge) < after - 0.3


@pytest.mark.slow
def test_learns_on_real_images(real_data):
    """A few iterations on MNIST or CIFAR-10: the loss on adversarial batches falls."""
    epsilon = 0.1 if real_data.name == "mnist" else 4 / 255
    training = Training(
        build_model("cnn", real_data),
        real_data,
        CaseSampler(real_data.y_train),
        PGD(epsilon, steps=2),
    )
    losses = []
    for _ in range(60):  # a record on a GPU has no loss unless the model was evaluated
        next(training)
        batch = training.batch
        losses.append(nn.functional.cross_entropy(batch.logits, batch.labels).item())
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])


# Protocol 1, one iteration by hand


@pytest.mark.parametrize("sampler", [UniformSampler, CaseSampler])
def test_an_iteration_is_protocol_1(digits, sampler, same):
    """Draw, attack, update, weigh: the same model and weights as four plain lines leave."""
    training = make(
        digits,
        sampler=sampler(digits.y_train, 32, seed=3),
        attack=PGD(0.1, steps=3, random_start=False),
    )
    model, draws = build_model("cnn", digits, seed=1), sampler(digits.y_train, 32, seed=3)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(5):
        record, indices = next(training), draws.draw()
        images, labels = digits.train(indices)
        adversarial = PGD(0.1, steps=3, random_start=False)(model, images, labels)
        logits = model(adversarial)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        draws.update(indices, information_gain(logits, labels))
        assert torch.equal(training.batch.indices, indices) and torch.equal(
            training.batch.adversarial, adversarial
        )
        assert record.loss == loss.item() and torch.equal(training.batch.logits, logits)
        assert torch.equal(training.batch.gain, information_gain(logits, labels))
    assert same(training.model.state_dict(), model.state_dict())
    if sampler is CaseSampler:
        assert torch.equal(training.sampler.weights, draws.weights)


@pytest.mark.parametrize("augment", [None, CropAndFlip(2)])
def test_an_iteration_with_a_memory_by_hand(digits, augment, same):
    """Each attack begins where the last one on the image ended; a dict remembers in full.

    With an augmentation, pixel by pixel: what stays in the frame is remembered anew.
    """
    digits = replace(digits, x_train=digits.x_train[:64], y_train=digits.y_train[:64])
    training = make(
        digits,
        sampler=UniformSampler(digits.y_train, 32, seed=3),
        attack=PGD(0.1, 0.04, steps=1, random_start=False),
        augment=augment,
        bits=16,
    )
    model = build_model("cnn", digits, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    last = torch.zeros(digits.x_train.shape)
    pixels = torch.arange(1, 65.0).view(1, 1, 8, 8).expand(32, 1, 8, 8)  # numbered; 0 is outside
    for _ in range(7):
        expected_stream = training._random_stream()
        next(training)
        indices = training.batch.indices
        images, labels = digits.train(indices)
        before = last[indices]
        where = pixels
        if augment is not None:
            generator = torch.Generator().manual_seed(expected_stream)
            moves = augment.draw(images, generator)
            images = moves(images)
            before = moves(before)
            where = moves(pixels)
        x = (images + before).requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(x), labels, reduction="sum"), x)
        moved = (before + 0.04 * slope.sign()).clamp(-0.1, 0.1)
        adversarial = (images + moved).clamp(0, 1)
        # a float16 is rounded: where a gradient is nearly 0 its sign may differ
        differs = (training.batch.adversarial - adversarial).abs() > 1e-3
        assert differs.double().mean() < 0.01
        adversarial = training.batch.adversarial
        for place, image in enumerate(indices.tolist()):
            inside = where[place] > 0
            pixel = where[place][inside].long() - 1
            found = (adversarial - images)[place][inside]
            last[image].view(-1)[pixel] = found
        optimizer.zero_grad()
        F.cross_entropy(model(adversarial), labels).backward()
        optimizer.step()
    assert same(training.model.state_dict(), model.state_dict())
    everything = torch.arange(len(last))
    torch.testing.assert_close(training.memory[everything], last, atol=1e-4, rtol=0)
    assert training.memory.has(everything).equal(training.seen)
    assert last.abs().max() > 0.07  # more than one step


def test_a_memory_costs_no_pass(digits):
    training = make(digits, bits=8, attack=PGD(0.1, 0.05, steps=1))
    assert take(training, 3)[-1].passes == 3 * 32 * 2


def test_a_memory_must_hold_what_the_attack_finds(digits):
    """Also when the attack is another one later: the iteration is refused, and nothing changes."""
    training = make(digits, bits=8)
    take(training, 2)
    before = training.state_dict()
    for attack, error in ((PGD(0.2), ValueError), (lambda model, x, y: x, TypeError)):
        training.attack = attack
        with pytest.raises(error):
            next(training)
        state = training.state_dict()
        assert torch.equal(state["memory"]["stored"], before["memory"]["stored"])
        assert state["iteration"] == 2
    training.attack = ATTACK
    take(training, 1)


def test_weights_move_where_drawn_and_nowhere_else(digits):
    training = make(digits)
    drawn = torch.cat([(next(training), training.batch.indices)[1] for _ in range(6)]).unique()
    weights = training.sampler.weights
    rest = torch.ones(len(weights), dtype=torch.bool)
    rest[drawn] = False
    assert (weights[rest] == 1).all() and (weights[~rest] != 1).all()
    assert training.batch.adversarial.shape == (32, 1, 8, 8)
    assert next(training).coverage == pytest.approx(int(training.seen.sum()) / 1437)


# it repeats itself

VARIANTS = {
    "case, sort": {"tree": False},
    "case, tree": {"tree": True},
    "Adam": {"adam": True},
    "everything": {
        "tree": True,
        "adam": True,
        "schedule": True,
        "augment": lambda x, g: crop_and_flip(x, g, 1),
        "evaluate_every": 4,
        "evaluation_size": 40,
    },
    "bfloat16": {"precision": "bfloat16"},
    "early stop": {"attack": PGD(0.1, steps=2, restarts=2, early_stop=True)},
    "memory": {"bits": 8, "attack": PGD(0.1, 0.05, steps=1)},
    "memory, augmented": {"bits": 16, "attack": PGD(0.1, 0.05, steps=1), "augment": CropAndFlip(1)},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_same_seed_same_run(digits, name, global_rng_untouched, same):
    runs = []
    with torch.random.fork_rng():
        for place in range(2):
            torch.manual_seed(place)  # which must not matter
            training = make(digits, seed=7, **VARIANTS[name])
            runs.append((without_seconds(take(training, 8)), training.state_dict()))
    assert runs[0][0] == runs[1][0] and same(runs[0][1], runs[1][1])
    take(make(digits, **VARIANTS[name]), 2)


def test_another_seed_another_run(digits):
    """The same draws from the sampler, other random starts.

    On a CPU torch heeds only the last 32 bits of a seed.
    """
    samplers = (UniformSampler(digits.y_train, 32, seed=1) for _ in range(2))
    a, b = (
        make(digits, sampler=sampler, attack=PGD(0.1, steps=0), seed=seed)
        for seed, sampler in enumerate(samplers)
    )
    next(a), next(b)
    assert torch.equal(a.batch.indices, b.batch.indices)
    delta = [t.batch.adversarial - digits.train(t.batch.indices)[0] for t in (a, b)]
    assert (
        abs(torch.corrcoef(torch.stack(delta).flatten(1))[0, 1]) < 0.6
    )  # not 0: the clamp at black pixels is common to both
    next(a)
    again = a.batch.adversarial - digits.train(a.batch.indices)[0]
    assert not torch.equal(again, delta[0])


def test_dropout_repeats_itself_and_leaves_the_global_state(
    digits, conv_net, global_rng_untouched, same
):
    states = []
    for _ in range(2):
        training = Training(
            conv_net(), digits, UniformSampler(digits.y_train, 32), ATTACK, device="cpu"
        )
        take(training, 4)
        states.append(training.state_dict())
    assert same(*states)


# it goes on where it stopped


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("stop", [1, 5, 11])
def test_resumed_equals_uninterrupted(digits, name, stop, same):
    whole = make(digits, seed=7, iterations=16, **VARIANTS[name])
    records = take(whole, 16)
    first = make(digits, seed=7, iterations=16, **VARIANTS[name])
    take(first, stop)
    state = through_a_file(first.state_dict())
    second = make(digits, seed=7, iterations=16, **VARIANTS[name])
    take(second, 2)  # whatever it did before is gone
    second.load_state_dict(state)
    rest = list(second)
    assert without_seconds(rest) == without_seconds(records[stop:])
    assert same(second.state_dict(), whole.state_dict())
    assert rest[0].seconds > state["seconds"] > 0


@pytest.mark.parametrize("stop", range(1, 8))
def test_stop_after_any_record(digits, stop):
    """Leaving the loop and coming back to the same object is no different from staying."""
    whole, paused = make(digits, iterations=8), make(digits, iterations=8)
    expected, got = without_seconds(list(whole)), []
    for record in paused:
        got.append(record)
        if record.iteration == stop:
            break
    got += list(paused)
    assert without_seconds(got) == expected and list(paused) == []


def test_resumed_on_the_other_form_of_the_sampler_keeps_the_weights(digits):
    first = make(digits, tree=False)
    take(first, 5)
    second = make(digits, tree=True)
    second.load_state_dict(through_a_file(first.state_dict()))
    assert torch.equal(second.sampler.weights, first.sampler.weights)
    take(second, 2)


# it counts what it spends


@pytest.mark.parametrize(
    "attack, an_iteration",
    [
        (PGD(0.1, steps=0), 32 * 1),
        (PGD(0.1, steps=7), 32 * 8),
        (PGD(0.1, steps=3, restarts=4), 32 * (4 * 3 + 4 + 1)),
        (PGD(0.1, steps=3, restarts=4, batch_size=32), 32 * (4 * 3 + 4 + 1)),
        (lambda model, x, y: (model(x), x)[1], 32 * 2),
        (lambda model, x, y: x, 32),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_passes_are_counted_exactly(digits, attack, an_iteration):
    """Images sent through the model: every step of every restart, its verdict, and the update.

    Evaluation is not counted.
    """
    training = make(
        digits,
        attack=attack,
        evaluate_every=2,
        evaluation_size=20,
        evaluation_attack=PGD(0.1, steps=1),
    )
    records = take(training, 4)
    assert [r.passes for r in records] == [an_iteration * (i + 1) for i in range(4)]
    assert [r.examples for r in records] == [32, 64, 96, 128] and [
        r.iteration for r in records
    ] == [1, 2, 3, 4]
    assert not training.model._forward_pre_hooks


def test_time_is_training_time(digits):
    """Evaluations that sleep, and a reader who is slow, cost the clock nothing."""

    def slow(model, x, y):
        time.sleep(0.3)
        return x

    training = make(digits, evaluate_every=2, evaluation_attack=slow, evaluation_size=10)
    began = time.perf_counter()
    for record in training:
        time.sleep(0.1)
        if record.iteration == 6:
            break
    wall = time.perf_counter() - began
    assert 0 < record.seconds < wall - 3 * 0.3 - 5 * 0.1


def test_evaluates_when_due_and_at_the_end(digits):
    training = make(digits, iterations=7, evaluate_every=3, evaluation_size=50)
    records = list(training)
    assert [r.iteration for r in records if r.accuracy is not None] == [3, 6, 7]
    assert all(0 <= r.robust_accuracy <= r.accuracy <= 1 for r in records if r.accuracy is not None)
    images, labels = digits.test(slice(50))
    assert training.evaluate() == (records[-1].accuracy, records[-1].robust_accuracy)
    assert records[-1].robust_accuracy == robust_accuracy(
        training.model, images, labels, PGD(0.1, steps=20)
    )
    assert all(r.accuracy is None for r in take(make(digits), 5))


def test_the_first_iterations_may_all_be_evaluated(digits):
    training = make(digits, iterations=11, evaluate_every=4, evaluate_first=3, evaluation_size=10)
    evaluated = [record.iteration for record in training if record.accuracy is not None]
    assert evaluated == [1, 2, 3, 4, 8, 11]


def test_checks_may_be_spread_over_the_test_set(digits):
    training = make(
        digits,
        iterations=4,
        evaluate_every=4,
        evaluation_size=60,
        evaluation_subset="spread",
        sampler=UniformSampler(digits.y_train, 32, seed=1),
    )
    *_, record = training
    chosen = subset(digits.y_test, 60, "spread")
    images, labels = digits.test(chosen)
    assert len(labels) == 60 and not torch.equal(chosen, torch.arange(60))
    assert record.accuracy == accuracy(training.model, images, labels)
    judge = PGD(0.1, steps=20)
    assert record.robust_accuracy == robust_accuracy(training.model, images, labels, judge)


def test_a_recalibrated_evaluation_judges_a_copy_and_changes_nothing(digits, conv_net, same):
    """Model, passes and what follows are as without it; the numbers are those of the copy."""

    def build(recalibrate):
        return Training(
            conv_net(),
            digits,
            UniformSampler(digits.y_train, 32),
            ATTACK,
            evaluate_every=2,
            evaluation_size=80,
            recalibrate=recalibrate,
            device="cpu",
        )

    plain, checked = build(0), build(200)
    for ours, theirs in zip(take(plain, 6), take(checked, 6), strict=True):
        assert (ours.loss, ours.passes) == (theirs.loss, theirs.passes)
    assert same(plain.state_dict(), checked.state_dict())
    calibration, _ = digits.train(subset(digits.y_train, 200, "spread"))
    judged = recalibrated(checked.model, calibration)
    images, labels = digits.test(slice(80))
    judge = PGD(0.1, steps=20)
    expected = (accuracy(judged, images, labels), robust_accuracy(judged, images, labels, judge))
    assert checked.evaluate() == expected
    assert same(checked.judged_model().state_dict(), judged.state_dict())
    assert plain.judged_model() is plain.model


def test_evaluation_changes_nothing(digits, same):
    often, never = make(digits, evaluate_every=1, evaluation_size=20), make(digits)
    take(often, 6), take(never, 6)
    assert same(often.state_dict(), never.state_dict())


# others plug in


def test_attacks_of_another_library_plug_in(digits):
    torchattacks = pytest.importorskip("torchattacks")
    for steps in (3, 1):
        model = build_model("cnn", digits)
        built = (
            torchattacks.PGD(model, eps=0.1, alpha=0.05, steps=3)
            if steps == 3
            else torchattacks.FGSM(model, eps=0.1)
        )
        attack = lambda _, x, y, built=built: built(x, y)  # noqa: E731
        training = Training(
            model,
            digits,
            UniformSampler(digits.y_train, 64),
            attack,
            device="cpu",
            evaluate_every=15,
            evaluation_size=50,
            evaluation_attack=PGD(0.1, steps=3),
        )
        records = take(training, 30)
        assert sum(r.loss for r in records[-5:]) < sum(r.loss for r in records[:5])
        assert records[-1].robust_accuracy is not None and records[-1].passes == 30 * 64 * (
            steps + 1
        )
        assert (
            training.batch.adversarial - digits.train(training.batch.indices)[0]
        ).abs().max() <= 0.1 + 1e-6


def test_a_sampler_of_one_s_own_plugs_in(digits):
    class Hardest:
        """Always the examples with the highest last gain; batches are plain lists."""

        def __init__(self, n):
            self.gain, self.updates = torch.full((n,), 100.0), 0

        def __iter__(self):
            for _ in range(2):
                yield self.gain.topk(16).indices.tolist()

        def update(self, indices, gain):
            self.gain[indices], self.updates = gain, self.updates + 1

    sampler = Hardest(1437)
    training = make(digits, sampler=sampler)
    take(training, 5)  # over the ends of its passes
    assert sampler.updates == 5 and int((sampler.gain < 100).sum()) == 80 == training.examples


def test_any_optimizer_and_scheduler(digits):
    model = build_model("cnn", digits)
    optimizer = torch.optim.RMSprop(model.parameters(), 1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    training = Training(
        model,
        digits,
        UniformSampler(digits.y_train, 32),
        ATTACK,
        optimizer,
        scheduler=scheduler,
        device="cpu",
    )
    take(training, 6)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 / 8)


def test_bfloat16_on_a_cpu(digits):
    """Attack and update run under autocast; weights, gains and evaluation stay in float32."""
    training = make(digits, precision="bfloat16", evaluate_every=30, evaluation_size=100)
    dtypes = []
    training.model.register_forward_hook(lambda _, __, out: dtypes.append(out.dtype))
    records = take(training, 30)
    assert dtypes[:3] == [torch.bfloat16] * 3 and dtypes[-1] == torch.float32
    assert training.batch.gain.dtype == training.batch.logits.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in training.model.parameters())
    assert records[-1].loss < records[0].loss and records[-1].accuracy > 0.5


@pytest.mark.parametrize("capability, warned", [("AVX2", True), ("AVX512", False)])
def test_emulated_bfloat16_is_said(digits, monkeypatch, capability, warned):
    """On a processor without AVX-512, and only where bfloat16 was asked for."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make(digits, precision="auto")
        assert not caught
        make(digits, precision="bfloat16")
    sentences = [str(warning.message) for warning in caught]
    assert any('precision="float32"' in sentence for sentence in sentences) == warned
    assert len(sentences) == warned


# it fails before it spoils


@pytest.mark.parametrize(
    "attack",
    [lambda m, x, y: x * float("nan"), lambda m, x, y: x + float("inf")],
    ids=["nan", "inf"],
)
def test_a_loss_that_is_not_finite_stops_before_the_update(
    digits, attack, global_rng_untouched, same
):
    training = make(digits, adam=True, schedule=True)
    take(training, 3)
    before = training.state_dict()
    training.attack = attack
    with pytest.raises(FloatingPointError, match=r"iteration 4.*lower the learning rate"):
        next(training)
    assert unchanged(training, before, same) and not training.model._forward_pre_hooks
    training.attack = ATTACK  # and it can go on
    assert next(training).iteration == 4


def unchanged(training, before, same) -> bool:
    """Whether nothing has happened since the state was taken, but that a batch was drawn."""
    after = training.state_dict()
    drawing = ("sampler", "drawn")
    rest = [name for name in after if name not in drawing]
    weights = [state["sampler"].get("weights", 0) for state in (before, after)]
    return all(same(before[name], after[name]) for name in rest) and same(*weights)


class Trouble(Exception):
    pass


class Fragile(nn.Module):
    """A net with batch norm and dropout in which a test can place one accident."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Dropout(0.2),
                nn.Flatten(),
                nn.Linear(512, 10),
            )
        self.accident = None

    def forward(self, x):
        logits = self.layers(x)
        if self.training and self.accident is not None:
            accident, self.accident = self.accident, None
            logits = accident(logits)
        return logits


def fragile(data, sampler=CaseSampler, **options):
    model = Fragile()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    return Training(
        model,
        data,
        sampler(data.y_train, 32, seed=1),
        options.pop("attack", ATTACK),
        optimizer,
        scheduler=scheduler,
        device="cpu",
        **options,
    )


def fails(*_):
    raise Trouble


class NoGradient(torch.autograd.Function):
    """The identity, whose gradient is not a number."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


class BrokenBackward(NoGradient):
    @staticmethod
    def backward(ctx, gradient):
        raise Trouble


ACCIDENTS = {
    "an error in the forward pass": (fails, Trouble),
    "an error in the backward pass": (BrokenBackward.apply, Trouble),
    "a loss that is not finite": (lambda logits: logits * float("nan"), FloatingPointError),
    "a gradient that is not finite": (NoGradient.apply, FloatingPointError),
    "a gain that is not finite": (
        lambda logits: logits.double() * 0 + torch.eye(10, dtype=torch.float64)[0] * 1e300,
        FloatingPointError,
    ),
    "a StopIteration": (lambda logits: next(iter(())), RuntimeError),
}


@pytest.mark.parametrize("sampler", [UniformSampler, CaseSampler])
@pytest.mark.parametrize("name", ACCIDENTS)
def test_an_iteration_that_fails_has_not_happened(digits, name, sampler, same):
    """Batch norm's statistics too are as they were, and the next try gets the same batch."""
    accident, error = ACCIDENTS[name]
    undisturbed = fragile(digits, sampler)
    expected = without_seconds(take(undisturbed, 6))
    training = fragile(digits, sampler)
    got = take(training, 3)
    before = training.state_dict()
    for _ in range(2):
        training.model.accident = accident
        with pytest.raises(error):
            next(training)
        assert unchanged(training, before, same) and not training.model._forward_pre_hooks
    got += take(training, 3)
    assert without_seconds(got) == expected
    assert same(training.state_dict(), undisturbed.state_dict())


def test_an_iteration_that_fails_leaves_the_memory(digits, same):
    def remembering():
        memory = PerturbationMemory(*memory_of(digits))
        return fragile(digits, memory=memory, augment=CropAndFlip(1))

    undisturbed = remembering()
    expected = without_seconds(take(undisturbed, 8))
    training = remembering()
    got = take(training, 5)
    before = training.state_dict()
    for accident, error in ACCIDENTS.values():
        training.model.accident = accident
        with pytest.raises(error):
            next(training)
        assert unchanged(training, before, same)
    got += take(training, 3)
    assert without_seconds(got) == expected
    assert same(training.state_dict(), undisturbed.state_dict())


@pytest.mark.parametrize("part", ["attack", "augment"])
def test_an_attack_or_augmentation_that_fails_has_not_happened(digits, part, same):
    """Also when it had sent images through the model, whose statistics that moved."""

    def breaks(*given):
        model = training.model
        model.train()(digits.train(slice(20))[0])
        raise Trouble

    parts = {"attack": ATTACK, "augment": lambda x, g: crop_and_flip(x, g, 1)}
    undisturbed = fragile(digits, **parts)
    expected = without_seconds(take(undisturbed, 5))
    training = fragile(digits, **parts)
    got = take(training, 2)
    before = training.state_dict()
    setattr(training, part, breaks)
    with pytest.raises(Trouble):
        next(training)
    assert unchanged(training, before, same)
    setattr(training, part, parts[part])
    second = fragile(digits, **parts)  # what failed may also go on elsewhere
    second.load_state_dict(through_a_file(training.state_dict()))
    for going_on in (training, second):
        assert without_seconds(got + take(going_on, 3)) == expected
        assert same(going_on.state_dict(), undisturbed.state_dict())


class Interrupting:
    """A function during whose call of this number somebody presses Ctrl-C."""

    def __init__(self, function, number):
        self.function = function
        self.number = number
        self.calls = 0

    def __call__(self, *given, **options):
        self.calls += 1
        if self.calls == self.number:
            signal.raise_signal(signal.SIGINT)
        return self.function(*given, **options)


@pytest.mark.parametrize("where", ["attack", "forward", "update", "sampler", "judge"])
def test_ctrl_c_damages_nothing_and_loses_no_record(digits, where, same):
    def build(number):
        judge = Interrupting(PGD(0.1, steps=2, random_start=False), number)
        options = {"evaluate_every": 2, "evaluation_size": 30, "evaluation_attack": judge}
        return fragile(digits, iterations=8, **options)

    undisturbed = build(number=0)
    expected = without_seconds(list(undisturbed))
    training = build(number=2 if where == "judge" else 0)
    if where == "attack":

        def attack(model, x, y):
            return ATTACK(model, x, y, generator=training._generator)

        training.attack = Interrupting(attack, 3)
    elif where == "forward":
        training.model.layers.forward = Interrupting(training.model.layers.forward, 9)
    elif where == "update":
        training.optimizer.register_step_post_hook(Interrupting(lambda *_: None, 3))
    elif where == "sampler":
        training.sampler.update = Interrupting(training.sampler.update, 3)
    got, interruptions = [], 0
    while len(got) < 8:
        try:
            for record in training:
                got.append(record)
        except KeyboardInterrupt:
            interruptions += 1
    assert interruptions == 1
    assert without_seconds(got) == expected
    assert same(training.state_dict(), undisturbed.state_dict())


def test_an_evaluation_that_fails_is_made_up_for(digits, same):
    """The record of the iteration waits, also in a state, until the model could be judged."""
    training = fragile(digits, evaluate_every=2, evaluation_size=30)
    expected = take(fragile(digits, evaluate_every=2, evaluation_size=30), 3)
    got = take(training, 1)
    judge = training.evaluation_attack
    training.evaluation_attack = fails
    for _ in range(2):
        with pytest.raises(Trouble):
            next(training)
        assert training.iteration == 2
    second = fragile(digits, evaluate_every=2, evaluation_size=30)
    second.load_state_dict(through_a_file(training.state_dict()))
    training.evaluation_attack = judge
    for going_on in (training, second):
        assert without_seconds(got + take(going_on, 2)) == without_seconds(expected)


def test_a_sampler_that_fails_loses_no_record(digits):
    """Its update comes after that of the model, so the iteration counts."""
    training = make(digits)
    update = training.sampler.update
    training.sampler.update = fails
    with pytest.raises(Trouble):
        next(training)
    training.sampler.update = update
    assert [record.iteration for record in take(training, 2)] == [1, 2]


def test_a_sampler_without_batches_is_no_end_of_training(digits):
    class Empty(list):
        def update(self, indices, gain):
            pass

    with pytest.raises(ValueError, match="a Empty, yields no batch"):
        next(make(digits, sampler=Empty()))


# a state


def test_a_state_is_a_copy(digits, same):
    """Kept in memory, it stays what it was, whoever trains on, also one that it was loaded into."""
    training = make(digits, adam=True, schedule=True)
    take(training, 3)
    state = training.state_dict()
    frozen = through_a_file(state)
    take(training, 3)
    assert same(state, frozen)
    expected = training.state_dict()
    for _ in range(2):
        second = make(digits, adam=True, schedule=True)
        second.load_state_dict(state)
        take(second, 3)
        assert same(second.state_dict(), expected)
        assert same(state, frozen)


def broken(state, *path, value):
    """The state with another value at a path."""
    first, *rest = path
    return state | {first: broken(state[first], *rest, value=value) if rest else value}


WRONG_STATES = {
    "another method": (
        lambda data, state: make(data, sampler=UniformSampler(data.y_train, 32)).state_dict(),
        "sampler is UniformSampler; here it is CaseSampler",
    ),
    "another optimizer": (
        lambda data, state: make(data, schedule=True, seed=7).state_dict(),
        "optimizer is SGD; here it is Adam",
    ),
    "no scheduler": (
        lambda data, state: make(data, adam=True, seed=7).state_dict(),
        "scheduler is NoneType; here it is OneCycleLR",
    ),
    "another seed": (
        lambda data, state: make(data, adam=True, schedule=True, seed=8).state_dict(),
        "the state is of seed 8; this training has seed 7",
    ),
    "another sampling number": (
        lambda data, state: state | {"sampler": CaseSampler(data.y_train, 33).state_dict()},
        "sampling_number 33",
    ),
    "other data": (
        lambda data, state: state | {"seen": torch.zeros(5, dtype=torch.bool)},
        "5 training images; the data have 1437",
    ),
    "an iteration beyond the end": (
        lambda data, state: state | {"iteration": 41},
        "after iteration 41; this training ends at 40",
    ),
    "half an iteration": (lambda data, state: state | {"iteration": 2.5}, "iteration is 2.5"),
    "a weight that is not a number": (
        lambda data, state: broken(
            state, "model", "1.0.weight", value=torch.full((16, 1, 4, 4), float("nan"))
        ),
        "1.0.weight are not finite",
    ),
    "a weight of another shape": (
        lambda data, state: broken(state, "model", "1.0.weight", value=torch.zeros(2)),
        r"1.0.weight is torch.float32 \(2,\); here it is torch.float32 \(16, 1, 4, 4\)",
    ),
    "a model without a layer": (
        lambda data, state: state | {"model": dict(list(state["model"].items())[1:])},
        "it has no 0.mean",
    ),
    "a layer too many": (
        lambda data, state: broken(state, "model", "extra", value=torch.zeros(2)),
        "this one has no extra",
    ),
    "a memory": (
        lambda data, state: state | {"memory": PerturbationMemory(*memory_of(data)).state_dict()},
        "with a memory of perturbations; this one has none",
    ),
    "nothing": (lambda data, state: {}, "lacks made_of, model"),
    "what a run stores": (lambda data, state: {"training": state}, "lacks made_of, model"),
    "an optimizer's state that is damaged": (
        lambda data, state: state | {"optimizer": {}},
        "does not fit this training, which is unchanged: KeyError",
    ),
    "a sampler's state that is damaged": (
        lambda data, state: state | {"sampler": {}},
        "does not fit this training",
    ),
    "a pending record that is damaged": (
        lambda data, state: state | {"pending": {"a": 1}},
        "does not fit this training",
    ),
}


@pytest.mark.parametrize("name", WRONG_STATES)
def test_a_state_that_does_not_fit_changes_nothing(digits, name, same):
    wrong, sentence = WRONG_STATES[name]
    options = {"adam": True, "schedule": True, "seed": 7, "iterations": 40}
    training = make(digits, **options)
    take(training, 3)
    other = make(digits, **options)
    take(other, 5)
    before = training.state_dict()
    state = wrong(digits, other.state_dict())
    with pytest.raises(ValueError, match=sentence):
        training.load_state_dict(state)
    assert same(training.state_dict(), before)
    undisturbed = make(digits, **options)
    undisturbed.load_state_dict(before)
    assert without_seconds(take(training, 2)) == without_seconds(take(undisturbed, 2))
    assert same(training.state_dict(), undisturbed.state_dict())


def test_a_sampler_without_a_state_is_said(digits):
    class Stateless(list):
        def update(self, indices, gain):
            pass

    training = make(digits, sampler=Stateless([[1, 2]]))
    next(training)
    with pytest.raises(TypeError, match="a Stateless, has no state_dict"):
        training.state_dict()


def test_progress_is_shown(digits, capsys):
    for _ in make(digits, iterations=6, evaluate_every=3, evaluation_size=20, progress=True):
        pass
    shown = capsys.readouterr().err
    endless = make(digits, progress=True)
    assert [next(endless).iteration for _ in range(3)] == [
        1,
        2,
        3,
    ] and "it/s" in capsys.readouterr().err
    assert "6/6" in shown and "accuracy=" in shown and "robust=" in shown and "it/s" in shown
    for _ in make(digits, iterations=2):
        pass
    assert capsys.readouterr().err == ""


def test_what_is_frozen_stays_so(digits):
    """A batch norm in eval mode while the model is in training mode; a whole model in eval mode."""
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
    frozen, free = model[0], model[3]
    frozen.eval()
    for whole_in_eval_mode in (False, True):
        if whole_in_eval_mode:
            model.eval()
        before = frozen.running_mean.clone(), free.running_mean.clone()
        sampler = UniformSampler(digits.y_train, 32)
        next(Training(model, digits, sampler, PGD(0.1, steps=1), device="cpu"))
        assert torch.equal(frozen.running_mean, before[0]) != whole_in_eval_mode
        assert not torch.equal(free.running_mean, before[1])


def test_a_sampler_of_other_labels_is_warned_of(digits):
    """Labels in another order balance nothing; groups of one's own are no mistake."""

    def begin(labels, **options):
        sampler = CaseSampler(labels, 32, **options)
        model = build_model("cnn", digits)
        Training(model, digits, sampler, PGD(0.1), device="cpu")

    with pytest.warns(UserWarning, match=r"another label than the data for \d+ of 1437 examples"):
        begin(digits.y_train.flip(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        begin(digits.y_train)
        begin(digits.y_train // 5)
        begin(digits.y_train.flip(0), class_balanced=False)


def test_an_error_in_a_loss_says_how_a_loss_is_called(digits):
    training = Training(
        build_model("cnn", digits),
        digits,
        UniformSampler(digits.y_train, 8),
        PGD(0.1, steps=1),
        loss=F.cross_entropy,
        device="cpu",
    )
    with pytest.raises(Exception) as caught:
        next(training)
    assert "loss(model, images, adversarial, labels)" in "".join(caught.value.__notes__)
