"""Several ranks train as one process does, go on from each other's states, and fail together."""

import io
import multiprocessing
import time
from dataclasses import dataclass, replace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import catlib
from catlib.lab.baselines import FreeTraining
from catlib.lab.losses import TRADES
from catlib.lab.runs import Trial, run
from catlib.ranks import Ranks

pytestmark = pytest.mark.no_device("it works in processes that see no mock")

PATIENCE = 300  # seconds that a rank may take for an answer: its start takes long on a busy machine


# ---- two processes that do what a test asks of them, over and over ----


class TwoRanks:
    """Two processes with gloo between them. ``ask(function, *arguments)`` runs it on both."""

    def __init__(self, folder):
        context = multiprocessing.get_context("spawn")
        self.pipes = []
        self.processes = []
        for rank in range(2):
            ours, theirs = context.Pipe()
            arguments = (rank, f"file://{folder}/meeting", theirs)
            process = context.Process(target=_answer, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def ask(self, function, *arguments):
        """What the function returns on each rank, or its error in words."""
        for pipe in self.pipes:
            pipe.send((function, arguments))
        return [self.answer_of(rank) for rank in range(2)]

    def answer_of(self, rank):
        assert self.pipes[rank].poll(PATIENCE), f"rank {rank} does not answer"
        return self.pipes[rank].recv()

    def close(self):
        for process in self.processes:
            process.terminate()
            process.join()


def _answer(rank, meeting, pipe):
    """What each process does: answer until it is ended."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    while True:
        function, arguments = pipe.recv()
        try:
            answer = function(*arguments)
        except Exception as error:
            answer = "\n".join(
                [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]
            )
        pipe.send(answer)


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """A function: the two ranks, started when they are first needed, as their start takes long."""
    started = []

    def alive():
        if not started or not all(process.is_alive() for process in started[-1].processes):
            started.append(TwoRanks(tmp_path_factory.mktemp("ranks")))
        return started[-1]

    yield alive
    for ranks in started:
        ranks.close()


@pytest.fixture
def two_ranks(processes):
    return processes()


# ---- what they are asked to do; every process builds the same ----


class Small(nn.Module):
    """Two linear layers, with a batch norm and dropout, or a layer without use, if asked for."""

    def __init__(self, norm=False, spare=False):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.hidden = nn.Linear(64, 24)
            self.norm = (
                nn.Sequential(nn.BatchNorm1d(24), nn.Dropout(0.3)) if norm else nn.Identity()
            )
            self.head = nn.Linear(24, 10)
            self.spare = nn.Linear(3, 3) if spare else None

    def forward(self, x):
        return self.head(self.norm(self.hidden(x.flatten(1))).relu())


class InDouble(nn.Module):
    """A network that computes in float64.

    A share of a batch rounds otherwise than the whole. In float32 that could give a pixel's slope
    another sign, and PGD another image.
    """

    def __init__(self, network):
        super().__init__()
        self.network = network.double()

    def forward(self, x):
        return self.network(x.double())


def build(model="small", ranks="auto", wrapped=False, **options):
    data = catlib.load_data("digits")
    if model == "cnn":
        network = catlib.build_model("cnn", data, seed=1)
    else:
        network = Small(norm=model == "norm", spare=model == "spare")
    network = InDouble(network)
    # 33 examples: two ranks have 17 and 16
    sampler = catlib.CaseSampler(data.y_train, options.pop("sampling_number", 33), seed=1)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    if wrapped:
        network = DistributedDataParallel(network, find_unused_parameters=True)
    options = {"attack": catlib.PGD(0.1, steps=2), "device": "cpu"} | options
    return catlib.Training(network, data, sampler, optimizer=optimizer, ranks=ranks, **options)


@dataclass
class Trained:
    """What is compared of a training."""

    records: list
    draws: list
    gains: list
    adversarial: torch.Tensor
    state: dict

    @property
    def parameters(self):
        return torch.cat([value.flatten() for value in self.state["model"].values()])


def train(options, iterations, state=None):
    training = build(**options)
    if state is not None:
        training.load_state_dict(state)
    return go_on(training, iterations)


def go_on(training, iterations):
    records = []
    draws = []
    gains = []
    for _ in range(iterations):
        records.append(next(training))
        draws.append(training.batch.indices)
        gains.append(training.batch.gain)
    return Trained(records, draws, gains, training.batch.adversarial, training.state_dict())


def close_to(ours, theirs):
    assert all(map(torch.equal, ours.draws, theirs.draws))
    for gain, other in zip(ours.gains, theirs.gains, strict=True):
        torch.testing.assert_close(gain, other, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.parameters, theirs.parameters, rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.adversarial, theirs.adversarial, rtol=0, atol=1e-6)
    for record, other in zip(ours.records, theirs.records, strict=True):
        assert record.loss == pytest.approx(other.loss, rel=1e-5)
        assert counts(record) == counts(other)


def counts(record):
    return (
        record.iteration,
        record.examples,
        record.passes,
        record.coverage,
        record.accuracy,
        record.robust_accuracy,
    )


def identical(ours, theirs, same):
    """Bit for bit, but for the seconds, which every rank measures itself."""
    assert same(ours.state, theirs.state)
    assert same(ours.gains, theirs.gains)
    assert torch.equal(ours.adversarial, theirs.adversarial)
    for record, other in zip(ours.records, theirs.records, strict=True):
        assert (record.loss, counts(record)) == (other.loss, counts(other))


# ---- the law is that of one process ----

RUNS = {
    "cnn": {"model": "cnn", "augment": catlib.crop_and_flip, "evaluate_every": 25},
    "l2, restarts": {"attack": catlib.PGD(0.8, steps=2, restarts=3, norm="l2", batch_size=70)},
    "early stop": {"attack": catlib.PGD(0.1, steps=2, restarts=2, early_stop=True)},
    "TRADES": {"loss": TRADES()},  # which sends two batches through the model
    "wrapped by the user": {"model": "spare", "wrapped": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_compute_what_one_process_computes(two_ranks, same, name):
    options = RUNS[name]
    iterations = 50 if name == "cnn" else 15
    first, second = two_ranks.ask(train, options, iterations)
    identical(first, second, same)
    close_to(first, train({**options, "wrapped": False}, iterations))


@pytest.mark.slow
def test_any_number_of_ranks_goes_on_with_a_run(two_ranks, same):
    expected = after_ten(train({}, 20))
    by_one = train({}, 10)
    by_two = two_ranks.ask(train, {}, 10)[0]
    close_to(train({}, 10, through_a_file(by_two.state)), expected)
    close_to(two_ranks.ask(train, {}, 10, by_one.state)[0], expected)
    again = two_ranks.ask(train, {}, 10, by_two.state)[0]
    identical(again, after_ten(two_ranks.ask(train, {}, 20)[0]), same)


def after_ten(trained):
    """What is compared, without the first ten iterations."""
    return replace(
        trained, records=trained.records[10:], draws=trained.draws[10:], gains=trained.gains[10:]
    )


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.slow
def test_ranks_stay_together_with_batch_norm_and_dropout(two_ranks, same):
    options = {"model": "norm", "evaluate_every": 5}
    first, second = two_ranks.ask(train, options, 10)
    identical(first, second, same)
    assert first.records[-1].robust_accuracy is not None


def noise_of_an_attack(training_seed):
    """The noise that an attack which draws global random numbers gives to each image."""
    noise = []

    def attack(model, images, labels):
        noise.append(torch.rand(len(images)))
        return images

    training = build(attack=attack, seed=training_seed)
    before = torch.get_rng_state()
    next(training)
    assert torch.equal(torch.get_rng_state(), before)
    return noise[0]


@pytest.mark.slow
def test_other_attacks_draw_other_noise_on_each_rank(two_ranks):
    first, second = two_ranks.ask(noise_of_an_attack, 0)
    assert not set(first.tolist()) & set(second.tolist())
    assert torch.equal(two_ranks.ask(noise_of_an_attack, 0)[1], second)


# ---- what fails on one rank fails on all ----


def fail_once_on_rank_1(part):
    """Errors of both ranks' third iterations, and what a further try of them gives."""
    attack = catlib.PGD(0.1, steps=2, random_start=False)
    broken = False

    def fail():
        nonlocal broken
        if broken:
            broken = False
            raise ValueError("the cable was pulled")

    def failing_attack(model, images, labels):
        nonlocal broken
        if part == "attack":
            fail()
        if part == "not finite" and broken:
            broken = False
            return images * float("nan")
        return attack(model, images, labels)

    def failing_augmentation(images, generator):
        if part == "augmentation":
            fail()
        return images

    training = build(
        attack=failing_attack,
        augment=failing_augmentation,
        evaluation_attack=catlib.PGD(0.1, steps=1),
        evaluate_every=3,
    )
    if part == "model in the update":
        training.model.register_forward_hook(lambda m, *_: fail() if m.training else None)
    if part == "evaluation":
        training.evaluate = lambda evaluate=training.evaluate: (fail(), evaluate())[1]
    if part == "sampler":
        training._next_indices = lambda draw=training._next_indices: (fail(), draw())[1]
    start = go_on(training, 2)
    broken = training.ranks.rank == 1
    began = time.monotonic()
    try:
        next(training)
        error = None
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    seconds = time.monotonic() - began
    rest = go_on(training, 3 if error else 2)
    return error, seconds, start.records + rest.records, rest


PARTS = ["sampler", "augmentation", "attack", "model in the update", "evaluation"]


@pytest.mark.slow
@pytest.mark.parametrize("part", [*PARTS, "not finite"])
def test_an_error_on_one_rank_is_one_on_all(two_ranks, same, part):
    (first, _, records, trained), (second, seconds, _, other) = two_ranks.ask(
        fail_once_on_rank_1, part
    )
    if part == "not finite":
        assert first == second
        assert first.startswith("FloatingPointError: the loss is nan at iteration 3")
    else:
        assert second == "ValueError: the cable was pulled"
        assert first == (
            "RuntimeError: rank 1 of 2 stopped with ValueError: the cable was pulled. "
            "So rank 0 stops, too."
        )
    assert seconds < 10
    # the iteration had not happened on either rank, and both go on together
    identical(trained, other, same)
    assert [record.iteration for record in records] == [1, 2, 3, 4, 5]
    _, _, _, undisturbed = two_ranks.ask(fail_once_on_rank_1, "nothing")[0]
    assert same(trained.state, undisturbed.state)


# ---- ranks that do not fit together are refused ----


def differ(what):
    second = dist.get_rank() == 1
    if what == "seed":
        return build(seed=7 if second else 0)
    if what == "evaluate_every":
        return build(evaluate_every=7 if second else 0)
    training = build()
    if what == "draw":
        training.sampler.generator.manual_seed(7 if second else 1)
    if what == "draw, iteration":  # one is at an evaluation, the other at the next draw
        training.evaluate_every = 1 if second else 0
        next(training)
    if what == "iteration" and second:
        training.load_state_dict(train({"ranks": "alone"}, 1).state)
    return next(training)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["seed", "evaluate_every", "draw", "iteration", "draw, iteration"])
def test_ranks_that_differ_are_refused(two_ranks, what):
    for error in two_ranks.ask(differ, what):
        assert error.startswith("RuntimeError: the 2 ranks do not have the same ")
        assert what in error and "load the same state" in error


def misuse(what):
    if what == "a small batch":
        next(build(sampling_number=1))
    if what == "a wrapped model to compile":
        build(wrapped=True, compile=True)
    if what == "free training":
        data = catlib.load_data("digits")
        sampler = catlib.UniformSampler(data.y_train)
        FreeTraining(Small(), data, sampler, catlib.PGD(0.1, steps=2), device="cpu")
    if what == "a run on disk":
        run(Trial(), "nowhere")


@pytest.mark.slow
@pytest.mark.parametrize(
    "what, words",
    {
        "a small batch": "the batch has 1 examples for 2 ranks; each needs at least one",
        "a wrapped model to compile": "give the model itself",
        "free training": "one process; here are 2 ranks",
        "a run on disk": "here are 2 ranks; take build_training(trial)",
    }.items(),
)
def test_what_several_ranks_cannot_do_is_said(two_ranks, what, words):
    for error in two_ranks.ask(misuse, what):
        assert error.startswith("ValueError: ") and words in error


def of_a_rank():
    training = build(progress=True)
    return training.ranks.is_first, training._bar is not None


@pytest.mark.slow
def test_rank_0_alone_shows_progress(two_ranks):
    assert two_ranks.ask(of_a_rank) == [(True, True), (False, False)]


def alone():
    return train({"ranks": "alone", "seed": dist.get_rank()}, 3)


@pytest.mark.slow
def test_ranks_may_train_alone(two_ranks, same):
    for seed, trained in enumerate(two_ranks.ask(alone)):
        identical(trained, train({"seed": seed}, 3), same)


class Lost(Exception):
    """An error inside the backward pass."""


def lose_rank_1():
    """What both ranks raise when rank 1 fails in a step of all ranks, and what rank 1 says then."""
    training = build()
    next(training)
    if training.ranks.rank == 0:
        next(training)  # waits for gradients, until rank 1 has ended

    def fail(_):
        raise Lost("no memory left")

    training.model.network.head.weight.register_hook(fail)
    said = []
    for _ in range(2):
        try:
            next(training)
        except (Lost, RuntimeError) as error:
            said.append("\n".join([str(error), *error.__notes__] if not said else [str(error)]))
    return said


@pytest.mark.slow
def test_an_error_in_a_step_of_all_ranks_ends_them(two_ranks):
    for pipe in two_ranks.pipes:
        pipe.send((lose_rank_1, ()))
    first_words, second_words = two_ranks.answer_of(1)
    assert "no memory left" in first_words and "Start all ranks again" in first_words
    assert second_words.startswith("rank 1 cannot go on with the others, after Lost: no memory")
    two_ranks.processes[1].kill()
    ended = time.monotonic()
    assert "Rank 0 of 2 was in a step of all ranks" in two_ranks.answer_of(0)
    assert time.monotonic() - ended < 10


# ---- without other processes ----


def test_one_process_does_nothing_for_its_ranks():
    ranks = Ranks()
    values = torch.rand(5)
    network = nn.Linear(2, 2)
    assert ranks.is_first
    assert values[ranks.share(5)].tolist() == values.tolist()
    assert ranks.gather(values, 5) is values
    assert ranks.weighed(values, 5) is values and ranks.mean(values) is values
    assert ranks.total(7) == 7
    assert ranks.wrap(network) is network
    with pytest.raises(StopIteration), ranks.agreed():
        raise StopIteration
    for _ in range(2):  # it has no others to lose
        with pytest.raises(ValueError, match="mine"), ranks.agreed(), ranks.in_step():
            raise ValueError("mine")


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"random_start": False},
        {"restarts": 1},
        {"restarts": 4, "batch_size": 30},
        {"restarts": 2, "norm": "l2"},
        {"restarts": 2, "early_stop": True},
    ],
    ids=str,
)
def test_a_share_is_attacked_as_in_the_whole_batch(digits, count, options):
    images, labels = digits.train(slice(11))
    images = images.double()
    model = Small().double()
    attack = catlib.PGD(0.1, steps=3, **options)

    def attacked(share):
        generator = torch.Generator().manual_seed(3)
        return attack(model, images, labels, generator=generator, share=share)

    whole = attacked(slice(None))
    for rank in range(count):
        share = slice(rank, None, count)
        torch.testing.assert_close(attacked(share), whole[share], rtol=0, atol=1e-9)


def test_torchrun_without_a_process_group_is_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "any")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"started 4 processes.*init_process_group"):
        build()
    assert build(ranks="alone").ranks.count == 1
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert build().ranks.count == 1
