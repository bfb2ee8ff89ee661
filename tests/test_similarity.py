"""Fig. 1 and the age of weights, against plain loops in float64 and scipy's Spearman."""

import copy
import math

import pytest
import torch
from scipy.stats import spearmanr

from catlib import (
    PGD,
    CaseSampler,
    Training,
    UniformSampler,
    build_model,
    information_gain,
    load_data,
)
from catlib.lab.similarity import (
    adversarial_logits,
    cosine_similarity,
    neighbour_similarity,
    rank_correlation,
    staleness,
)

ATTACK = PGD(0.15, steps=2)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def training(data, iterations=6, sampler=None, attack=ATTACK, rate=0.05):
    model = build_model("cnn", data)
    return Training(
        model,
        data,
        sampler or UniformSampler(data.y_train, 64),
        attack,
        torch.optim.SGD(model.parameters(), rate),
        iterations=iterations,
        device="cpu",
    )


def slow_cosine(a, b):
    p, q = ([math.exp(z - max(row)) for z in row] for row in (a, b))
    p, q = ([x / math.fsum(row) for x in row] for row in (p, q))
    lengths = math.sqrt(math.fsum(x * x for x in p) * math.fsum(y * y for y in q))
    return math.fsum(x * y for x, y in zip(p, q, strict=True)) / lengths


@pytest.mark.parametrize("scale", [0.1, 3, 1e4])
def test_cosine_is_the_plain_loop(scale):
    a, b = scale * torch.randn(2, 50, 7, generator=torch.Generator().manual_seed(0))
    expected = [slow_cosine(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    torch.testing.assert_close(
        cosine_similarity(a, b), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )


def test_cosine_is_one_for_the_same_prediction_and_zero_for_two_sure_ones():
    logits = torch.tensor([[900.0, 0, 0], [1, 2, 3]])
    assert cosine_similarity(logits, logits + 5).tolist() == pytest.approx([1, 1])
    assert cosine_similarity(logits[:1], logits[:1].roll(1)).item() == 0


def test_cosine_refuses_what_does_not_match():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 4\)"):
        cosine_similarity(torch.zeros(2, 3), torch.zeros(2, 4))


def test_rank_correlation_is_spearmans_with_ties():
    generator = torch.Generator().manual_seed(1)
    for levels in (3, 10, 1000):
        a, b = torch.randint(levels, (2, 80), generator=generator).float()
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
    assert math.isnan(rank_correlation(torch.ones(5), torch.arange(5)))


def test_rank_correlation_within_groups_sees_nothing_of_what_lies_between_them():
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 300, generator=generator)
    groups = torch.arange(300) % 3
    # the groups lie far apart in both: that agrees, and the order inside is still chance
    assert rank_correlation(a + 10 * groups, b + 10 * groups) > 0.85
    expected = [spearmanr(a[groups == g], b[groups == g]).statistic for g in range(3)]
    # groups of one size and no ties: the mean of the groups' own correlations
    assert rank_correlation(a + 10 * groups, b - 10 * groups, groups) == pytest.approx(
        sum(expected) / 3, abs=1e-12
    )
    assert rank_correlation(a, a - 10 * groups, groups) == pytest.approx(1)


def test_adversarial_logits_leave_model_and_random_state_alone(digits):
    model = torch.nn.Sequential(build_model("cnn", digits), torch.nn.Dropout(0.5)).train()
    x, y = digits.test(slice(40))
    state = torch.get_rng_state()
    one, again, other = (
        adversarial_logits(model, x, y, ATTACK, seed, batch_size=16) for seed in (3, 3, 4)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state) and all(m.training for m in model.modules())

    # any callable is an attack; what it draws from the global state is seeded too
    def noise(model, images, labels):
        return (images + 0.1 * torch.rand_like(images)).clamp(0, 1)

    assert torch.equal(
        adversarial_logits(model, x, y, noise, 3), adversarial_logits(model, x, y, noise, 3)
    )


def test_neighbours_are_compared_as_a_loop_over_stored_models_would(digits):
    x, y = digits.test(slice(60))
    table = neighbour_similarity(training(digits), x, y, gaps=(1, 3), seed=7)
    models, run = {}, training(digits)
    for record in run:
        models[record.iteration] = copy.deepcopy(run.model).eval()

    def examples(iteration, start):
        generator = torch.Generator().manual_seed(7 if start == "same" else 7 + iteration)
        return ATTACK(models[iteration], x, y, generator=generator)

    def logits(iteration, start):
        return models[iteration](examples(iteration, start)).detach()

    assert len(table) == 2 * (5 + 3)
    for row in table.itertuples():
        before, now = logits(row.iteration - row.gap, row.start), logits(row.iteration, row.start)
        cosines = torch.tensor(
            [slow_cosine(p, q) for p, q in zip(before.tolist(), now.tolist(), strict=True)]
        ).double()
        assert (row.mean, row.std) == pytest.approx(
            (cosines.mean().item(), cosines.std(correction=0).item()), abs=1e-6
        )
        assert (
            row.q50 == pytest.approx(cosines.median().item(), abs=0.02)
            and row.q05 <= row.q50 <= row.q95
        )
        assert row.agreement == (before.argmax(1) == now.argmax(1)).double().mean().item()
        assert row.success == (now.argmax(1) != y).double().mean().item()
        on_old = models[row.iteration](examples(row.iteration - row.gap, row.start))
        assert row.old_success == pytest.approx((on_old.argmax(1) != y).double().mean().item())
        # the partner is the previous image of the class, the last for the first
        classmates = [[j for j in range(60) if y[j] == y[i]] for i in range(60)]
        partner = [mates[mates.index(i) - 1] for i, mates in enumerate(classmates)]
        control = [slow_cosine(before[j].tolist(), now[i].tolist()) for i, j in enumerate(partner)]
        assert row.control == pytest.approx(sum(control) / 60, abs=1e-6)


def test_a_model_that_stands_still_repeats_itself_from_the_same_start_only(digits):
    x, y = digits.test(slice(60))
    table = (
        neighbour_similarity(training(digits, iterations=3, rate=0.0), x, y)
        .groupby("start")["mean"]
        .min()
    )
    assert table["same"] == pytest.approx(1, abs=1e-12) and table["fresh"] < 1 - 1e-9


def test_measuring_changes_nothing(digits):
    x, y = digits.test(slice(20))
    measured, plain = training(digits, iterations=4), training(digits, iterations=4)
    neighbour_similarity(measured, x, y)
    for _ in plain:
        pass
    assert all(
        torch.equal(a, b)
        for a, b in zip(measured.model.parameters(), plain.model.parameters(), strict=True)
    )


@pytest.mark.parametrize("sampler", [UniformSampler, CaseSampler])
def test_staleness_is_the_plain_loop(digits, sampler):
    alphas, edges, examples = (0, 0.5), (1, 3, 6), torch.arange(0, 1437, 3)
    observed = training(digits, 12, sampler(digits.y_train, 128))
    table = staleness(observed, alphas=alphas, ages=edges, every=4, examples=examples, seed=5)
    run, expected = training(digits, 12, sampler(digits.y_train, 128)), []
    weights, drawn = {alpha: [1.0] * 1437 for alpha in alphas}, {}
    for record in run:
        for i, gain in zip(run.batch.indices.tolist(), run.batch.gain.tolist(), strict=True):
            drawn[i] = record.iteration
            for alpha in alphas:
                weights[alpha][i] = alpha * weights[alpha][i] + (1 - alpha) * gain
        if record.iteration % 4 == 0:
            logits = adversarial_logits(
                run.model, *digits.train(examples), ATTACK, 5 + record.iteration
            )
            fresh = information_gain(logits, digits.y_train[examples])
            fresh = dict(zip(examples.tolist(), fresh.tolist(), strict=True))
            for first, end in zip(edges, (*edges[1:], math.inf), strict=True):
                mine = [
                    i
                    for i in fresh
                    if i in drawn and first <= record.iteration + 1 - drawn[i] < end
                ]
                if len(mine) >= 20:
                    now = [fresh[i] for i in mine]
                    stored = {alpha: [weights[alpha][i] for i in mine] for alpha in alphas}
                    expected += [
                        (
                            record.iteration,
                            alpha,
                            first,
                            spearmanr(stored[alpha], now).statistic,
                            len(mine),
                        )
                        for alpha in alphas
                    ]
    assert len(table) == len(expected) > 0
    for row, (iteration, alpha, age, correlation, n) in zip(
        table.itertuples(), expected, strict=True
    ):
        assert (row.iteration, row.alpha, row.age, row.n) == (iteration, alpha, age, n)
        # two gains a rounding apart may change places
        assert row.rank_correlation == pytest.approx(correlation, abs=1e-3)


def test_a_weight_of_a_model_that_stands_still_never_grows_old(digits):
    run = training(digits, 30, attack=PGD(0.15, steps=2, random_start=False), rate=0.0)
    table = staleness(run, alphas=(0,), ages=(1, 5, 20))
    assert set(table.age) == {1, 5, 20} and table.rank_correlation.min() > 0.9999


def test_endless_or_begun_trainings_are_refused(digits):
    x, y = digits.test(slice(5))
    with pytest.raises(ValueError, match="never end"):
        neighbour_similarity(training(digits, None), x, y)
    with pytest.raises(ValueError, match="starts among same, fresh"):
        neighbour_similarity(training(digits), x, y, starts=("old",))
    begun = training(digits)
    next(begun)
    with pytest.raises(ValueError, match="iteration 1 of 6"):
        staleness(begun)
