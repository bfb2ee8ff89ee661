"""TRADES, MART and the attack of TRADES: the published formulas, and the same loop around them."""

import math

import pytest
import torch
from torch import nn

from catlib import PGD, CaseSampler, Training, UniformSampler, build_model, information_gain
from catlib.lab.losses import MART, TRADES, KLAttack, divergence
from catlib.lab.runs import Trial, build_training, records_of
from catlib.training import adversarial_cross_entropy

B, K = 7, 4


class Logits(nn.Module):
    """A model whose logits for the image number i are row i of a table that can be trained."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, images):
        return self.table[images[:, 0, 0, 0].long()]


def example(seed=0, scale=3.0):
    """A model, clean images 0..B-1, adversarial ones B..2B-1, and labels; all in float64."""
    generator = torch.Generator().manual_seed(seed)
    table = scale * torch.randn(2 * B, K, dtype=torch.float64, generator=generator)
    numbers = torch.arange(2 * B, dtype=torch.float64).view(-1, 1, 1, 1)
    labels = torch.randint(0, K, (B,), generator=generator)
    return Logits(table), numbers[:B], numbers[B:], labels


def probabilities(row):
    exponentials = [math.exp(value) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def trades_by_hand(clean, adversarial, labels, beta):
    """The formula of Zhang et al., example by example, in plain Python numbers."""
    total = 0.0
    for q_logits, p_logits, y in zip(clean, adversarial, labels, strict=True):
        q, p = probabilities(q_logits), probabilities(p_logits)
        total += -math.log(q[y])
        total += beta * sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))
    return total / len(labels)


def mart_by_hand(clean, adversarial, labels, beta):
    """The formula of Wang et al., example by example, in plain Python numbers."""
    total = 0.0
    for q_logits, p_logits, y in zip(clean, adversarial, labels, strict=True):
        q, p = probabilities(q_logits), probabilities(p_logits)
        largest_wrong = max(value for k, value in enumerate(p) if k != y)
        total += -math.log(p[y]) - math.log(1 - largest_wrong)
        divergence = sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))
        total += beta * divergence * (1 - q[y])
    return total / len(labels)


FORMULAS = {"TRADES": (TRADES, trades_by_hand), "MART": (MART, mart_by_hand)}


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
@pytest.mark.parametrize("name", FORMULAS)
def test_the_loss_is_the_published_formula(name, beta):
    loss, by_hand = FORMULAS[name]
    for seed in range(5):
        model, images, adversarial, labels = example(seed)
        value, logits = loss(beta)(model, images, adversarial, labels)
        expected = by_hand(
            model(images).tolist(), model(adversarial).tolist(), labels.tolist(), beta
        )
        assert value.item() == pytest.approx(expected, rel=1e-12)
        assert torch.equal(logits, model(adversarial))


@pytest.mark.parametrize("name", FORMULAS)
def test_the_gradient_is_that_of_the_published_formula(name):
    """By central differences of the plain formula, in every logit of both versions of an image."""
    loss, by_hand = FORMULAS[name]
    model, images, adversarial, labels = example()
    value, _ = loss(6.0)(model, images, adversarial, labels)
    value.backward()
    table = model.table.detach()
    step = 1e-6
    numerical = torch.zeros_like(table)
    for row in range(2 * B):
        for column in range(K):
            ends = []
            for sign in (1, -1):
                moved = table.clone()
                moved[row, column] += sign * step
                rows = moved.tolist()
                ends.append(by_hand(rows[:B], rows[B:], labels.tolist(), 6.0))
            numerical[row, column] = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(model.table.grad, numerical, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_model_that_is_sure_and_wrong_gives_a_finite_loss(name):
    loss, _ = FORMULAS[name]
    model, images, adversarial, labels = example(scale=1000.0)
    value, _ = loss(6.0)(model, images, adversarial, labels)
    value.backward()
    assert value.isfinite() and model.table.grad.isfinite().all()


def test_the_divergence_is_torch_s_own():
    model, images, adversarial, _ = example()
    ours = divergence(model(images), model(adversarial))
    p = torch.distributions.Categorical(logits=model(adversarial))
    q = torch.distributions.Categorical(logits=model(images))
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(q, p))


def test_trades_with_equal_images_is_cross_entropy_on_clean_ones():
    model, images, _, labels = example()
    value, _ = TRADES(6.0)(model, images, images, labels)
    expected, _ = adversarial_cross_entropy(model, images, images, labels)
    torch.testing.assert_close(value, expected)


def test_the_attack_of_trades_equals_that_of_torchattacks(conv_net):
    """Same noise, same steps: the same images, in float64 and with batch norm in eval mode."""
    torchattacks = pytest.importorskip("torchattacks")
    model = conv_net().double().eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(16, 1, 8, 8, dtype=torch.float64, generator=generator)
    labels = torch.zeros(16, dtype=torch.long)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = torchattacks.TPGD(model, eps=0.1, alpha=0.02, steps=7)(images)
        torch.manual_seed(3)
        ours = KLAttack(0.1, 0.02, 7)(model, images, labels)
    torch.testing.assert_close(ours, theirs)
    assert (ours - images).abs().max() > 0.05


def test_the_attack_of_trades_raises_the_divergence_and_stays_in_the_ball(classifier, digits):
    images, labels = digits.test(slice(100))
    with torch.random.fork_rng(), torch.no_grad():
        near = KLAttack(0.1, steps=0)(classifier, images, labels)
        far = KLAttack(0.1, steps=10)(classifier, images, labels)
        clean = classifier(images)
        start = divergence(clean, classifier(near)).mean()
        end = divergence(clean, classifier(far)).mean()
    assert end > 100 * start
    assert (far - images).abs().max() <= 0.1 + 1e-6
    assert far.min() >= 0 and far.max() <= 1
    assert not far.requires_grad


def test_the_attack_of_trades_leaves_the_model_as_it_was(conv_net, snapshot):
    model = conv_net().train()
    model.frozen_norm.eval()
    before = snapshot(model)
    with torch.random.fork_rng():
        KLAttack(0.1, steps=3)(model, torch.rand(8, 1, 8, 8), torch.zeros(8, dtype=torch.long))
    assert snapshot(model) == before


# in the loop


@pytest.mark.parametrize("sampler", [UniformSampler, CaseSampler])
@pytest.mark.parametrize("loss", [TRADES(6.0), MART(5.0)])
def test_an_iteration_with_another_loss_is_protocol_1(digits, sampler, loss, same):
    """Draw, attack, update, weigh: the same model and weights as plain lines leave."""
    attack = PGD(0.1, steps=2, random_start=False)
    training = Training(
        build_model("cnn", digits, seed=1),
        digits,
        sampler(digits.y_train, 32, seed=3),
        attack,
        loss=loss,
        device="cpu",
    )
    model = build_model("cnn", digits, seed=1)
    draws = sampler(digits.y_train, 32, seed=3)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for iteration in range(1, 4):
        record = next(training)
        indices = draws.draw()
        images, labels = digits.train(indices)
        adversarial = attack(model, images, labels)
        value, logits = loss(model, images, adversarial, labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        draws.update(indices, information_gain(logits, labels))
        assert record.loss == value.item()
        assert torch.equal(training.batch.logits, logits)
        assert torch.equal(training.batch.gain, information_gain(logits, labels))
        # two steps of the attack, and both versions of an image in the update
        assert record.passes == iteration * 32 * 4
    assert same(training.model.state_dict(), model.state_dict())


def test_trades_as_published_in_a_trial_learns_repeats_itself_and_counts(same):
    trial = Trial(
        loss="trades", crafting="kl", steps=3, iterations=40, evaluate_every=40, device="cpu"
    )
    trainings = [build_training(trial) for _ in range(2)]
    last = [list(records_of(trial, training))[-1] for training in trainings]
    assert same(trainings[0].state_dict(), trainings[1].state_dict())
    # the clean logits and three steps of the attack, and two passes of the update
    assert last[0].passes == 40 * 128 * 6
    assert last[0].accuracy > 0.8
    assert last[0].robust_accuracy > 0.45


def test_epsilon_of_the_attack_of_trades_grows():
    trial = Trial(loss="trades", crafting="kl", epsilon_warm_up=4, iterations=4, evaluate_every=0)
    training = build_training(trial)
    epsilons = []
    for _ in records_of(trial, training):
        epsilons.append((training.attack.epsilon, training.attack.step_size))
    expected = [0.1 * share for share in (0.25, 0.5, 0.75, 1)]
    assert [epsilon for epsilon, _ in epsilons] == pytest.approx(expected)
    assert [step for _, step in epsilons] == pytest.approx([0.25 * each for each in expected])


def test_an_update_by_trades_equals_that_of_art(digits):
    """The Adversarial Robustness Toolbox's own trainer, on adversarial images that both are given.

    It keeps probabilities at 1e-8 or more, which is nothing beside the tolerance.
    """
    pytest.importorskip("art")
    from art.defences.trainer import AdversarialTrainerTRADESPyTorch
    from art.estimators.classification import PyTorchClassifier

    images, labels = digits.train(slice(64))
    adversarial = PGD(0.1, steps=3, random_start=False)(build_model("cnn", digits), images, labels)

    theirs = build_model("cnn", digits)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.05)
    # one layer in its eyes, since it takes the first layer's output for logits, too
    classifier = PyTorchClassifier(
        nn.Sequential(theirs), nn.CrossEntropyLoss(), (1, 8, 8), 10, optimizer, device_type="cpu"
    )

    class Given:
        def generate(self, x, y):
            return adversarial.numpy()

    trainer = AdversarialTrainerTRADESPyTorch(classifier, Given(), beta=6.0)
    trainer._batch_process(images.numpy(), labels.numpy())

    ours = build_model("cnn", digits)
    value, _ = TRADES(6.0)(ours, images, adversarial, labels)
    value.backward()
    torch.optim.SGD(ours.parameters(), 0.05).step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
