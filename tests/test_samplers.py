"""Which examples an iteration sees: against exact successive sampling, plain loops, and properties.

If the sampler is right, each chi-square test fails with probability 1e-4. Their seeds are fixed:
a green one stays green, and with probability 0.003 one of the about thirty here would have been red
at first.
"""

import copy
import io
import itertools
import math
import os
import pickle
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

import catlib
from catlib import CaseSampler, UniformSampler, samplers
from catlib.kernels.tree import Forest

FALSE_ALARM = 1e-4
FORMS = pytest.mark.parametrize("tree", ["sort", "tree", "top-k"], indirect=True)
on_the_cpu = pytest.mark.no_device("its samplers are on the CPU")


@pytest.fixture
def tree(request, monkeypatch):
    """The argument ``tree`` for a form of the draw; a GPU's, by top-k, stands in for the sort."""
    if request.param == "top-k":
        monkeypatch.setattr(samplers, "_SortStore", samplers._TopKStore)
    return request.param == "tree"


def with_weights(sampler, weights):
    """Set w_t: at alpha 0, Eq. 4 keeps the last gain alone."""
    alpha, sampler.alpha = sampler.alpha, 0.0
    sampler.update(torch.arange(sampler.n), torch.as_tensor(weights, dtype=torch.float64))
    sampler.alpha = alpha
    return sampler


def set_probabilities(log_weights, k):
    """The probability of each set of k in successive sampling: the sum over the orders of a set."""
    n = len(log_weights)
    law = {}
    for order in itertools.permutations(range(n), k):
        left, log_p = list(range(n)), 0.0
        for i in order:
            high = max(log_weights[j] for j in left)
            log_p += (
                log_weights[i] - high - math.log(sum(math.exp(log_weights[j] - high) for j in left))
            )
            left.remove(i)
        key = tuple(sorted(order))
        law[key] = law.get(key, 0.0) + math.exp(log_p)
    assert abs(sum(law.values()) - 1) < 1e-9
    return law


def chi_square(counts, law):
    """The p-value of these counts under this law; cells that expect fewer than 5 are merged."""
    stats = pytest.importorskip("scipy.stats")
    draws = sum(counts.values())
    assert not set(counts) - set(law)
    assert not [key for key in counts if law[key] * draws < 1e-9], "what cannot happen has happened"
    cells = sorted(((p * draws, counts.get(key, 0)) for key, p in law.items()), reverse=True)
    large = [cell for cell in cells if cell[0] >= 5]
    rest = [sum(x) for x in zip(*cells[len(large) :], strict=True)] or [0.0, 0]
    if rest[0] >= 5 or not large:
        large.append(rest)
    else:
        large[-1] = [a + b for a, b in zip(large[-1], rest, strict=True)]
    if len(large) == 1:
        return 1.0
    expected, observed = np.array(large).T
    return stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue


def count_sets(sampler, draws):
    counts = {}
    for _ in range(draws):
        key = tuple(sorted(sampler.draw().tolist()))
        counts[key] = counts.get(key, 0) + 1
    return counts


# the law of a draw

WEIGHTS = {
    "equal": [1.0] * 6,
    "mild": [-1.0, -0.5, 0.0, 0.4, 0.8, 1.2],
    "steep": [-4.0, -2.0, 0.0, 2.0, 3.0, 3.1],
    "one heavy": [-10000.0, 0.0, 0.3, -0.3, 0.1, 10000.0],
    "two heavy, tied": [1e4, 1e4, -1e4, -1e4 + 1, -1e4, -1e4 + 0.5],
    "far below": [-1e4, -1e4 + 1, -1e4 + 0.5, -1e4, -1e4 + 1.5, -1e4],
}


@on_the_cpu
@FORMS
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("k", [1, 3])
def test_law_without_classes(name, k, tree):
    sampler = CaseSampler(
        torch.arange(6), k, class_balanced=False, temperature=1.0, tree=tree, seed=1
    )
    law = set_probabilities(WEIGHTS[name], k)
    assert chi_square(count_sets(with_weights(sampler, WEIGHTS[name]), 3000), law) > FALSE_ALARM


@on_the_cpu
@FORMS
def test_law_with_classes_and_a_temperature(tree):
    """Two of each class, drawn by weight within the class: the law is the product of theirs."""
    labels, weights = [0, 1, 0, 1, 0, 1, 0, 1], [0.0, -3.0, 2.0, 0.0, 4.0, 3.0, -1.0, 1.0]
    sampler = with_weights(
        CaseSampler(torch.tensor(labels), 4, temperature=2.5, tree=tree, seed=2), weights
    )
    laws = []
    for c in (0, 1):
        members = [i for i in range(8) if labels[i] == c]
        laws.append(
            {
                tuple(members[j] for j in key): p
                for key, p in set_probabilities([weights[i] / 2.5 for i in members], 2).items()
            }
        )
    law = {tuple(sorted(a + b)): p * q for a, p in laws[0].items() for b, q in laws[1].items()}
    assert chi_square(count_sets(sampler, 4000), law) > FALSE_ALARM


@on_the_cpu
@pytest.mark.parametrize("shift", [0.0, 12.0], ids=["sums have fallen", "sums have risen"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_law_across_the_groups_and_levels_of_the_tree(k, shift):
    """Six examples that count, far apart in a tree of 300, after many updates up and down."""
    places, weights = [0, 31, 32, 100, 170, 299], [0.0, 1.0, -1.0, 2.0, 0.5, 1.5]
    sampler = CaseSampler(torch.zeros(300, dtype=torch.long), k, temperature=1.0, tree=True, seed=3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        sampler.update(sampler.draw(), torch.randn(k, generator=generator) * 5)
    gains = torch.full((300,), -60.0)
    gains[places] = torch.tensor(weights) + shift
    law = {tuple(places[i] for i in key): p for key, p in set_probabilities(weights, k).items()}
    assert chi_square(count_sets(with_weights(sampler, gains), 5000), law) > FALSE_ALARM


@on_the_cpu
@FORMS
def test_law_of_one_of_many(tree):
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(130, generator=generator) * 1.5
    sampler = with_weights(
        CaseSampler(torch.zeros(130, dtype=torch.long), 1, temperature=1.0, tree=tree, seed=4),
        weights,
    )
    law = {(i,): p for i, p in enumerate(weights.double().softmax(0).tolist())}
    assert chi_square(count_sets(sampler, 8000), law) > FALSE_ALARM


def test_the_extremely_heavy_come_first_and_the_light_when_nothing_else_is_left():
    for tree in (False, True):
        sampler = CaseSampler(torch.zeros(90, dtype=torch.long), 45, temperature=1.0, tree=tree)
        with_weights(sampler, torch.where(torch.arange(90) % 2 == 0, 1e4, -1e4))
        for _ in range(20):
            assert sorted(sampler.draw().tolist()) == list(range(0, 90, 2))
        whole = CaseSampler(torch.zeros(90, dtype=torch.long), 90, temperature=1.0, tree=tree)
        with_weights(whole, torch.where(torch.arange(90) % 2 == 0, 1e4, -1e4))
        assert sorted(whole.draw().tolist()) == list(range(90))


@on_the_cpu
@FORMS
def test_the_order_within_a_batch_says_nothing(tree):
    """A heavy example is drawn first, but stands anywhere in its batch."""
    sampler = CaseSampler(torch.zeros(8, dtype=torch.long), 4, temperature=1.0, tree=tree, seed=6)
    with_weights(sampler, [50.0] + [0.0] * 7)
    counts = {}
    for _ in range(2000):
        place = (sampler.draw() == 0).nonzero().item()
        counts[place] = counts.get(place, 0) + 1
    assert chi_square(counts, dict.fromkeys(range(4), 0.25)) > FALSE_ALARM


@on_the_cpu
@pytest.mark.parametrize("seed", [0, 1])
def test_both_forms_have_one_law(seed):
    """How often an example is drawn by sort and by tree: z-scores of 40, Bonferroni at 1e-4."""
    stats = pytest.importorskip("scipy.stats")
    weights, draws = torch.linspace(-3, 3, 40), 2500
    labels = torch.arange(40) % 3
    often = []
    for tree in (False, True):
        sampler = with_weights(
            CaseSampler(labels, 9, temperature=1.3, tree=tree, seed=seed), weights
        )
        often.append(
            sum(torch.bincount(sampler.draw(), minlength=40) for _ in range(draws)).double() / draws
        )
    spread = (
        (((often[0] * (1 - often[0])) + (often[1] * (1 - often[1]))) / draws).sqrt().clamp(min=1e-9)
    )
    assert ((often[0] - often[1]) / spread).abs().max() < stats.norm.isf(FALSE_ALARM / 40 / 2)


@pytest.mark.parametrize("classes", [1, 3, 10])
def test_the_top_k_draws_what_the_sort_draws(monkeypatch, classes):
    """From the same noise, whatever the sizes of the classes: the same examples.

    Where examples of no weight must fill up a class, each form takes others of them.
    """
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(classes, (500,), generator=generator).square() // max(1, classes - 1)
    gains = torch.randn(500, generator=generator) * 4
    has_weight = gains > 3
    for log_weight in (None, lambda w: torch.where(w > 3, w, -torch.inf)):
        drawn = []
        for form in (samplers._SortStore, samplers._TopKStore):
            with monkeypatch.context() as patched:
                patched.setattr(samplers, "_SortStore", form)
                sampler = CaseSampler(labels, 70, log_weight=log_weight, tree=False, seed=7)
            with_weights(sampler, gains)
            drawn.append([sampler.draw().sort().values for _ in range(30)])
        for by_sort, by_top_k in zip(*drawn, strict=True):
            assert len(by_top_k.unique()) == 70
            assert torch.equal(labels[by_sort].bincount(), labels[by_top_k].bincount())
            if log_weight is None:
                assert torch.equal(by_sort, by_top_k)
            else:
                heavy = [batch[has_weight[batch]] for batch in (by_sort, by_top_k)]
                assert torch.equal(*heavy)


def test_the_top_k_needs_classes_of_similar_size():
    """One class of a million beside a thousand small ones would make a matrix of 10^9."""
    assert samplers._TopKStore.is_compact(np.array([6000] * 10))
    assert samplers._TopKStore.is_compact(np.array([6742, 5421, 5958]))
    assert not samplers._TopKStore.is_compact(np.array([1_000_000] + [10] * 1000))


# balance


def quotas_by_loop(counts, k):
    """Hand the places out one by one, each to the class that has fewest and is not exhausted.

    Returns the quotas, the remainder, and the classes that share it.
    """
    quotas, first = [0] * len(counts), None
    while True:
        free = [c for c in range(len(counts)) if quotas[c] < counts[c]]
        if k - sum(quotas) < len(free) or not free:
            return quotas, k - sum(quotas), free
        for c in free:
            quotas[c] += 1
        assert first is None


@on_the_cpu
@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    share=st.floats(0, 1),
    tree=st.booleans(),
)
@example(counts=[20] * 10, share=0.64, tree=False)
@example(counts=[1, 1, 9, 9, 9], share=0.5, tree=True)
@example(counts=[3], share=1.0, tree=True)
def test_balance(counts, share, tree):
    """Exact to one a class in a batch, and exact over as many batches as share the remainder."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    k = max(1, round(share * len(labels)))
    sampler = CaseSampler(labels, k, tree=tree)
    base, remainder, free = quotas_by_loop(counts, k)
    total = torch.zeros(len(counts), dtype=torch.long)
    for _ in range(max(1, len(free))):
        batch = sampler.draw()
        assert len(batch) == k == len(batch.unique())
        drawn = torch.bincount(labels[batch], minlength=len(counts))
        extra = (drawn - torch.tensor(base)).tolist()
        assert sum(extra) == remainder and all(
            e in (0, 1) if c in free else e == 0 for c, e in enumerate(extra)
        )
        total += drawn
        sampler.update(batch, torch.randn(k))
    rounds = max(1, len(free))
    assert total.tolist() == [
        rounds * q + (remainder if c in free else 0) for c, q in enumerate(base)
    ]


def test_the_paper_s_balance():
    """128 over ten classes: 12 or 13 a class, and 128 a class in any ten batches in a row."""
    labels = torch.arange(2000) % 10
    sampler = CaseSampler(labels, 128)
    each = torch.stack([torch.bincount(labels[sampler.draw()], minlength=10) for _ in range(33)])
    assert set(each.unique().tolist()) == {12, 13}
    for first in range(24):
        assert each[first : first + 10].sum(0).tolist() == [128] * 10


@FORMS
def test_labels_need_not_be_dense(tree):
    labels = torch.tensor([3, 3, 900, 900, 900, 7])
    sampler = CaseSampler(labels, 3, tree=tree)
    for _ in range(5):
        assert sorted(labels[sampler.draw()].tolist()) == [3, 7, 900]


@FORMS
def test_unbalanced_draws_ignore_the_classes(tree):
    labels = torch.tensor([0] * 6 + [1] * 6)
    sampler = with_weights(
        CaseSampler(labels, 6, class_balanced=False, temperature=1.0, tree=tree),
        [40.0] * 6 + [0.0] * 6,
    )
    assert sorted(sampler.draw().tolist()) == list(range(6))


# Eq. 4


@FORMS
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_weights_follow_eq4(tree, alpha):
    labels = torch.arange(300) % 4
    sampler = CaseSampler(labels, 30, alpha, tree=tree)
    assert sampler.weights.tolist() == [1.0] * 300  # Protocol 1, line 1
    expected, generator = [1.0] * 300, torch.Generator().manual_seed(1)
    for _ in range(25):
        batch, gain = sampler.draw(), torch.randn(30, generator=generator, dtype=torch.float64) * 8
        sampler.update(batch, gain)
        for i, g in zip(batch.tolist(), gain.tolist(), strict=True):
            expected[i] = alpha * expected[i] + (1 - alpha) * g
    assert sampler.weights.dtype == torch.float32
    torch.testing.assert_close(sampler.weights, torch.tensor(expected), atol=1e-5, rtol=1e-6)


@FORMS
def test_weights_are_a_copy_and_an_update_of_none_is_none(tree):
    sampler = CaseSampler(torch.zeros(40, dtype=torch.long), 4, tree=tree)
    sampler.weights.fill_(7)
    sampler.update(torch.tensor([], dtype=torch.long), torch.tensor([]))
    assert sampler.weights.tolist() == [1.0] * 40


@FORMS
def test_gains_of_any_precision_and_a_graph(tree):
    sampler = CaseSampler(torch.zeros(40, dtype=torch.long), 4, 0.5, tree=tree)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        with_weights(sampler, torch.ones(40))
        sampler.update(
            torch.tensor([3, 5], dtype=torch.int32),
            torch.tensor([2.0, -4.0], dtype=dtype, requires_grad=True),
        )
        assert sampler.weights[[3, 5, 6]].tolist() == [1.5, -1.5, 1.0]


# temperature


@FORMS
def test_auto_temperature_is_the_deviation_renewed_once_a_pass(tree):
    """A sampler whose temperature is set by hand at those moments draws the same."""
    labels, generator = torch.arange(60) % 3, torch.Generator().manual_seed(0)
    auto, hand = (
        CaseSampler(labels, 12, tree=tree, seed=9),
        CaseSampler(labels, 12, temperature=1.0, tree=tree, seed=9),
    )
    assert len(auto) == 5
    for t in range(40):
        if t and t % 5 == 0:
            hand.temperature = hand.weights.double().std(correction=0).item()
        batch, gain = auto.draw(), torch.randn(12, generator=generator) * (1 + t)
        assert torch.equal(batch, hand.draw())
        auto.update(batch, gain), hand.update(batch, gain)
    assert hand.temperature > 10


@FORMS
def test_auto_temperature_does_not_feel_the_scale_of_the_logits(tree):
    gains, draws = torch.randn(60, generator=torch.Generator().manual_seed(0)), []
    for scale in (1.0, 1024.0):
        sampler = with_weights(
            CaseSampler(torch.arange(60) % 3, 12, tree=tree, seed=9), gains * scale
        )
        sampler.temperature = "auto"
        draws.append(torch.stack([sampler.draw() for _ in range(20)]))
    assert torch.equal(*draws)


@on_the_cpu
@FORMS
def test_a_high_temperature_draws_uniformly(tree):
    sampler = with_weights(
        CaseSampler(torch.zeros(6, dtype=torch.long), 2, temperature=1e12, tree=tree),
        WEIGHTS["steep"],
    )
    assert chi_square(count_sets(sampler, 3000), set_probabilities([0.0] * 6, 2)) > FALSE_ALARM


@on_the_cpu
def test_log_weight_replaces_the_exponent():
    sampler = CaseSampler(torch.zeros(6, dtype=torch.long), 2, log_weight=lambda w: -2 * w, seed=3)
    law = set_probabilities([-2 * w for w in WEIGHTS["mild"]], 2)
    assert chi_square(count_sets(with_weights(sampler, WEIGHTS["mild"]), 3000), law) > FALSE_ALARM


# state


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


SAMPLERS = {
    "uniform": lambda labels, seed: UniformSampler(labels, 16, seed=seed),
    "sort": lambda labels, seed: CaseSampler(labels, 16, 0.3, tree=False, seed=seed),
    "tree": lambda labels, seed: CaseSampler(labels, 16, 0.3, tree=True, seed=seed),
    "tree, fixed temperature": lambda labels, seed: CaseSampler(
        labels, 16, 0.3, temperature=3.0, tree=True, seed=seed
    ),
}


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("after", [0, 1, 5, 6, 7, 20])
def test_goes_on_bit_for_bit_from_its_state(name, after):
    labels = torch.arange(100) % 7
    first = SAMPLERS[name](labels, 1)

    def go_on(sampler, iterations, generator):
        drawn = []
        for _ in range(iterations):
            drawn.append(sampler.draw())
            sampler.update(drawn[-1], torch.randn(16, generator=generator) * 4)
        return drawn

    generator = torch.Generator().manual_seed(0)
    go_on(first, after, generator)
    second = SAMPLERS[name](labels, 999)
    second.load_state_dict(through_a_file(first.state_dict()))
    copy = torch.Generator()
    copy.set_state(generator.get_state())
    for a, b in zip(go_on(first, 15, generator), go_on(second, 15, copy), strict=True):
        assert torch.equal(a, b)
    if name != "uniform":
        assert torch.equal(first.weights, second.weights)


def test_a_state_goes_from_one_form_to_the_other():
    labels = torch.arange(100) % 7
    sort = with_weights(SAMPLERS["sort"](labels, 1), torch.linspace(-5, 5, 100))
    tree = SAMPLERS["tree"](labels, 2)
    tree.load_state_dict(sort.state_dict())
    assert torch.equal(tree.weights, sort.weights) and (tree.quotas() == sort.quotas()).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_seed_decides_and_the_global_state_is_left_alone(name, global_rng_untouched):
    labels = torch.arange(100) % 7
    draws = [
        torch.stack([sampler.draw() for _ in range(12)])
        for sampler in (SAMPLERS[name](labels, s) for s in (1, 1, 2))
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_state_is_a_snapshot(name, same):
    """Neither the sampler that it was taken from nor one that it was loaded to changes it."""
    labels = torch.arange(100) % 7
    first, second, third = (SAMPLERS[name](labels, seed) for seed in (1, 2, 3))
    first.draw()
    state = first.state_dict()
    before = copy.deepcopy(state)
    second.load_state_dict(state)
    for sampler in (first, second):
        for _ in range(9):
            batch = sampler.draw()
            sampler.update(batch, torch.randn(16))
            batch.zero_()  # a batch is the caller's
    third.load_state_dict(state)
    assert same(state, before)
    fresh = SAMPLERS[name](labels, 4)
    fresh.load_state_dict(before)
    assert torch.equal(third.draw(), fresh.draw())


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_refused_state_changes_nothing(name, same):
    """Every part in turn is spoilt, the others being those of another sampler."""
    labels = torch.arange(100) % 7
    sampler, other = SAMPLERS[name](labels, 1), SAMPLERS[name](labels, 2)
    sampler.draw()
    other.update(torch.arange(100), torch.randn(100))
    other.draw()
    before = copy.deepcopy(sampler.state_dict())
    for part in before:
        for value in (None, torch.zeros(3, dtype=torch.bfloat16), -1, "x"):
            with pytest.raises(ValueError):
                sampler.load_state_dict(other.state_dict() | {part: value})
            assert same(sampler.state_dict(), before), part
    copied = SAMPLERS[name](labels, 3)
    copied.load_state_dict(before)
    assert torch.equal(copied.draw(), sampler.draw())


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_can_be_copied_and_pickled(name):
    sampler = SAMPLERS[name](torch.arange(100) % 7, 1)
    sampler.update(sampler.draw(), torch.randn(16))
    copies = [copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))]
    batch = sampler.draw()
    assert all(torch.equal(one.draw(), batch) for one in copies)


# what could go on for ever, or go wrong unseen


def spoil(sampler, weights=None, divisor=None):
    """Weights and divisors that no public way lets in."""
    if weights is not None:
        sampler._store.load(torch.as_tensor(weights, dtype=torch.float32))
    if divisor is not None:
        sampler._current_temperature = divisor
    return sampler


@FORMS
@pytest.mark.parametrize(
    "weights, divisor",
    [
        ([float("nan")] * 40, 1.0),
        ([1.0] * 30 + [float("inf")] * 10, 1.0),
        ([1.0] * 40, float("nan")),
        ([1.0] * 40, 5e-324),
        ([3e38] * 40, 1e-300),
        ([-3e38] * 40, 1e-270),
        ([1e20] * 40, 1e-3),
        ([5e16] * 40, 1.0),
    ],
)
def test_a_draw_by_what_is_no_weight_is_refused_and_ends(tree, weights, divisor):
    sampler = CaseSampler(torch.arange(40) % 2, 30, temperature=1.0, tree=tree)
    spoil(sampler, weights, divisor)
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="temperature"):
        sampler.draw()
    spoil(sampler, torch.ones(40), 1.0)
    assert len(sampler.draw().unique()) == 30 and sampler.weights.tolist() == [1.0] * 40


@FORMS
@pytest.mark.parametrize("weight", [-1e13, 1e13, 3e14])
def test_draws_by_large_weights_end(tree, weight):
    sampler = CaseSampler(torch.arange(600) % 2, 500, temperature=1.0, tree=tree)
    sampler.update(torch.arange(600), torch.full((600,), weight))
    for _ in range(5):
        assert len(sampler.draw().unique()) == 500


@on_the_cpu
def test_log_weight_is_honoured_when_set_later_or_refused():
    sampler = CaseSampler(torch.zeros(6, dtype=torch.long), 2, temperature=1.0, seed=3)
    with_weights(sampler, WEIGHTS["mild"])
    sampler.log_weight = lambda w: -2 * w
    law = set_probabilities([-2 * w for w in WEIGHTS["mild"]], 2)
    assert chi_square(count_sets(sampler, 3000), law) > FALSE_ALARM
    sampler.log_weight = None
    assert chi_square(count_sets(sampler, 3000), law) < FALSE_ALARM
    large = CaseSampler(torch.zeros(5000, dtype=torch.long), 2)
    with pytest.raises(ValueError, match="tree=False"):
        large.log_weight = torch.neg
    assert large.log_weight is None
    large.log_weight = None


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_sampling_number_may_be_set_at_any_time(name):
    sampler = SAMPLERS[name](torch.arange(100) % 7, 1)
    for number in (1, sampler.n, 7):
        sampler.sampling_number = number
        batch = sampler.draw()
        assert len(batch) == number == len(batch.unique())
        assert len(list(sampler)) == sampler.n // number
    with pytest.raises(ValueError, match=f"sampling_number is 0; it must .* 1..{sampler.n}"):
        sampler.sampling_number = 0
    assert sampler.sampling_number == 7


def test_log_weight_does_not_reach_the_weights():
    sampler = CaseSampler(torch.zeros(6, dtype=torch.long), 2, log_weight=lambda w: w.mul_(3))
    sampler.draw()
    assert sampler.weights.tolist() == [1.0] * 6


@FORMS
def test_integers_of_any_kind(tree):
    """NumPy's numbers and small unsigned labels are accepted, and a state holds plain numbers."""
    labels = np.arange(40) % 3
    plain = CaseSampler(torch.from_numpy(labels), 8, 0.25, temperature=2.0, tree=tree, seed=5)
    batch = plain.draw()
    for dtype in (np.uint8, np.int16, np.uint16, np.uint32, np.uint64):
        sampler = CaseSampler(
            torch.from_numpy(labels.astype(dtype)),
            np.int64(8),
            np.float64(0.25),
            temperature=np.float32(2.0),
            tree=tree,
            seed=np.int64(5),
        )
        assert torch.equal(sampler.draw(), batch)
        through_a_file(sampler.state_dict())
    assert len(UniformSampler(torch.arange(9).to(torch.uint16), np.int32(4)).draw()) == 4


@on_the_cpu
@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_threads_share_a_sampler(name):
    """Four threads draw, update and read at once: no update is lost, no half-made state is seen."""
    n, rounds = 400, 300
    labels = torch.arange(n) % 7
    if name == "uniform":
        sampler = UniformSampler(labels, 320)
    else:
        sampler = CaseSampler(labels, 320, 0.5, temperature=1.0, tree=name != "sort")
    errors, seen = [], []
    own = torch.arange(n).chunk(4)

    def work(mine):
        try:
            for _ in range(rounds):
                assert len(sampler.draw().unique()) == 320
                sampler.update(mine, torch.full((len(mine),), 2.0))
                state = sampler.state_dict()
                if "weights" in state:
                    assert state["weights"].isfinite().all() and sampler.weights.isfinite().all()
        except BaseException as error:
            errors.append(error)
        seen.append(mine)

    threads = [threading.Thread(target=work, args=(mine,), daemon=True) for mine in own]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 4, "a thread still draws"
    assert not errors, errors[0]
    if name != "uniform":
        alone = CaseSampler(labels, 320, 0.5, tree=name != "sort")
        for _ in range(rounds):
            alone.update(torch.arange(n), torch.full((n,), 2.0))
        assert torch.equal(sampler.weights, alone.weights)


READ_ONLY = r"""
import warnings, torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import catlib
    samplers = [catlib.CaseSampler(torch.arange(5000) % 10, 64, seed=s) for s in (0, 0)]
    batches = [sampler.draw().tolist() for sampler in samplers]
assert batches[0] == batches[1] and len(set(batches[0])) == 64
print(catlib.__file__)
print(*[w.message for w in caught if w.category is RuntimeWarning], sep="\n")
"""


@pytest.mark.no_device("it works in processes that see no mock")
@pytest.mark.slow
@pytest.mark.parametrize("cache", [None, "/proc/nowhere"])
def test_the_tree_needs_no_folder_that_can_be_written(tmp_path, cache):
    """A read-only install in a container without a home: compiled in memory, and said once.

    Permissions do not stop root, so the folder of the cache is a file, and the home lies in /proc.
    """
    shutil.copytree(
        Path(catlib.__file__).parent,
        tmp_path / "catlib",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    (tmp_path / "catlib" / "kernels" / "__pycache__").write_text("")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "PYTHONWARNINGS")
    }
    environment |= {"HOME": "/proc/nowhere", "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    if cache is not None:
        environment["NUMBA_CACHE_DIR"] = cache
    run = subprocess.run(
        [sys.executable, "-c", READ_ONLY],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    where, *said = run.stdout.strip().split("\n")
    assert Path(where).parent == tmp_path / "catlib"
    assert len(said) == 1 and "seconds" in said[0] and "NUMBA_CACHE_DIR" in said[0]


# as batch samplers


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_feeds_a_data_loader(name, workers):
    labels = torch.arange(100) % 7
    sampler = SAMPLERS[name](labels, 0)
    data = TensorDataset(torch.arange(100) * 10, labels, torch.arange(100))
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers)
    assert len(loader) == len(sampler) == 6
    batches = list(loader)
    assert len(batches) == 6
    for x, y, indices in batches:
        assert (
            torch.equal(x, indices * 10)
            and torch.equal(y, labels[indices])
            and len(indices.unique()) == 16
        )
        sampler.update(indices, torch.randn(16))


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_batch_is_int64_without_repeats(name):
    sampler = SAMPLERS[name](torch.arange(100) % 7, 0)
    for batch in itertools.islice(itertools.chain.from_iterable(itertools.repeat(sampler)), 20):
        assert batch.dtype == torch.int64 and batch.shape == (16,) and len(batch.unique()) == 16
        assert batch.min() >= 0 and batch.max() < 100


def test_uniform_covers_each_example_at_most_once_a_pass():
    sampler = UniformSampler(torch.zeros(50, dtype=torch.long), 8)
    passes = [torch.cat(list(sampler)) for _ in range(10)]
    for drawn in passes:
        assert len(drawn) == 48 == len(drawn.unique())
    assert len({tuple(drawn.tolist()) for drawn in passes}) == 10  # a fresh shuffle each


def test_uniform_is_uniform():
    sampler = UniformSampler(torch.zeros(5, dtype=torch.long), 2, seed=1)
    assert chi_square(count_sets(sampler, 3000), set_probabilities([0.0] * 5, 2)) > FALSE_ALARM


def test_case_sampler_sees_everything_once_before_anything_twice_while_all_are_right():
    """w_0 = 1 ranks the unseen above the correct, whose gain is negative: nearly a first pass."""
    sampler = CaseSampler(torch.arange(400) % 10, 40, 0.0, temperature=0.05)
    seen = torch.cat(
        [
            (batch := sampler.draw(), sampler.update(batch, torch.full((40,), -5.0)))[0]
            for _ in range(10)
        ]
    )
    assert len(seen.unique()) == 400


def test_works_on_the_device_of_its_labels(device):
    labels = torch.arange(100, device=device) % 7
    sampler = CaseSampler(labels, 16)
    for _ in range(10):
        batch = sampler.draw()
        assert batch.device == labels.device and len(batch.unique()) == 16
        sampler.update(batch, torch.randn(16, device=device))
    assert sampler.weights.device == labels.device


# the sum tree


def drift(updates, n=5000):
    generator = np.random.default_rng(0)
    groups = generator.integers(0, 4, n)
    forest = Forest(groups, np.ones(n, np.float32))
    for t in range(updates // 100):
        forest.draw(
            np.full(4, 25), t
        )  # which must leave the tree as it was; what it drew is not all that is updated
        batch = generator.choice(n, 100, replace=False)
        forest.update(
            batch,
            (generator.standard_normal(100) * 10 ** generator.uniform(-3, 4)).astype(np.float32),
        )
    fresh = Forest(groups, forest.weights)
    assert np.array_equal(forest.nodes, fresh.nodes)


def test_the_tree_does_not_drift():
    """After 10^5 updates, between draws, every node is bit for bit that of a tree built anew."""
    drift(100_000)


@on_the_cpu
@pytest.mark.slow
def test_the_tree_does_not_drift_in_a_million_updates():
    drift(1_000_000)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 256, 257, 5000])
def test_the_root_is_the_sum_of_all(n):
    weights = np.random.default_rng(n).uniform(-900, 900, n).astype(np.float32)
    forest = Forest(np.zeros(n, np.int64), weights)
    for temperature in (1.0, 7.5):
        forest.set_temperature(temperature)
        expected = np.logaddexp.reduce(weights.astype(np.float64) / temperature)
        assert forest.log_sums() == pytest.approx([expected], rel=1e-12)
    assert forest.deviation() == pytest.approx(
        weights.astype(np.float64).std(), rel=1e-9, abs=1e-12
    )


def test_the_tree_is_what_large_data_get():
    large = torch.zeros(5000, dtype=torch.long)
    assert set(CaseSampler(large, 8).state_dict()) == set(
        CaseSampler(large, 8, tree=False).state_dict()
    )
    same = [CaseSampler(large, 8, tree=tree).draw().tolist() for tree in (None, True, False)]
    assert same[0] == same[1] != same[2]
