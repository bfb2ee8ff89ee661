"""Protocol 1: it learns, repeats itself, goes on where it stopped, and counts what it spends."""

import io
import time

import pytest
import torch
import torch.nn.functional as F

from catlib import (
    PGD,
    CaseSampler,
    Training,
    UniformSampler,
    build_model,
    crop_and_flip,
    information_gain,
    robust_accuracy,
)

ATTACK = PGD(0.1, steps=2)


def make(
    data,
    *,
    tree=None,
    sampler=None,
    attack=ATTACK,
    adam=False,
    schedule=False,
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
    return Training(
        model, data, sampler, attack, optimizer, scheduler=scheduler, device=device, **options
    )


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
    losses = [record.loss for record in take(training, 60)]
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
    second = make(
        digits, seed=0, iterations=16, **VARIANTS[name]
    )  # another seed: the state's counts
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
    before = through_a_file({k: v for k, v in training.state_dict().items() if k != "sampler"})
    weights = training.sampler.weights
    training.attack, passes = attack, before.pop("passes")
    with pytest.raises(FloatingPointError, match=r"iteration 4.*lower the learning rate"):
        next(training)
    after = training.state_dict()
    assert (
        all(same(before[key], after[key]) for key in before if key != "seconds")
        and after["passes"] >= passes
    )
    assert torch.equal(training.sampler.weights, weights) and not training.model._forward_pre_hooks
    training.attack = ATTACK  # and it can go on
    assert next(training).iteration == 4


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
