"""Fig. 1: how alike the model finds old and new adversarial examples, and what old weights say.

CAT weighs an example by adversarial examples of earlier iterations. Two measurements ask whether
that is justified, each along a whole training:

    # Fig. 1: the similarity of predictions, a row for each iteration
    table = neighbour_similarity(training, images, labels)
    # the claim itself: does an old weight still rank the examples?
    table = staleness(training)
"""

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from catlib import PGD, Training, accuracy, information_gain, smooth
from catlib.attacks import Network, check_adversarial
from catlib.evaluation import judging

STARTS = ("same", "fresh")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def cosine_similarity(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    r"""$\cos(p, q) = p \cdot q \,/\, (\|p\| \|q\|)$ of two predictions.

    The predictions p and q are the softmax of the logits.

    Args:
        logits_a, logits_b: (B, K), of the same B examples.

    Returns: (B,) float64, on the CPU, in [0, 1]: 1 for equal predictions, 0 for two predictions
        that are certain of different classes.
    """
    if logits_a.ndim != 2 or logits_a.shape != logits_b.shape:
        raise ValueError(
            f"logits {tuple(logits_a.shape)} and {tuple(logits_b.shape)} must both be (B, K)."
        )
    p = logits_a.detach().cpu().double().softmax(1)
    q = logits_b.detach().cpu().double().softmax(1)
    return ((p * q).sum(1) / (p.norm(dim=1) * q.norm(dim=1))).clamp(max=1)


def rank_correlation(a: Tensor, b: Tensor, within: Tensor | None = None) -> float:
    """Spearman's rank correlation; equal values share a rank, and it is nan if either is constant.

    Args:
        a, b: (n,) values.
        within: (n,) groups. A rank is then a place within the group, counted from the group's
            middle as a share of its size. The result says how well the orders inside the groups
            agree, whatever lies between the groups.
    """
    values = pd.DataFrame({"a": _numpy(a.double()), "b": _numpy(b.double())})
    if within is None:
        ranks = values.rank(pct=True)
    else:
        groups = pd.Series(_numpy(within))  # an array would be searched for among the columns first
        ranks = values.groupby(groups).rank(pct=True)
        ranks -= ranks.groupby(groups).transform("mean")
    if ranks.a.nunique() < 2 or ranks.b.nunique() < 2:
        return float("nan")
    return ranks.a.corr(ranks.b)


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy()


def adversarial_logits(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Callable,
    seed: int,
    batch_size: int = 512,
) -> Tensor:
    """Logits (B, K) on adversarial examples made now, from random starts of this seed.

    In eval mode and float32. The model and the global random state are left as they were.
    """
    _, logits = _attacked(model, images, labels, attack, seed, batch_size)
    return logits


def _attacked(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Callable,
    seed: int,
    batch_size: int = 512,
) -> tuple[Tensor, Tensor]:
    """(adversarial examples (B, C, H, W), logits (B, K)): see :func:`adversarial_logits`."""
    if not len(images):
        raise ValueError("there are no images to attack.")
    network = Network(model)
    generator = torch.Generator(images.device).manual_seed(seed)
    examples = []
    logits = []
    with judging(model, images.device) as interrupts:
        torch.manual_seed(seed)
        batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
        for x, y in interrupts.polled(batches):
            if isinstance(attack, PGD):
                adversarial = attack(model, x, y, generator=generator)
            else:
                with interrupts.allowed():
                    adversarial = check_adversarial(attack(model, x.clone(), y.clone()), x)
            examples.append(adversarial)
            with torch.no_grad():
                logits.append(network(adversarial))
    return torch.cat(examples), torch.cat(logits)


def neighbour_similarity(
    training: Training,
    images: Tensor,
    labels: Tensor,
    *,
    gaps: Sequence[int] = (1,),
    starts: Sequence[str] = STARTS,
    attack: Callable | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Fig. 1 at every iteration: run a training to its end, and compare new and old examples.

    After each iteration the same images are attacked anew. The predictions of today's model on
    today's adversarial examples are compared with those of the model ``gap`` iterations ago on the
    adversarial examples of that time.

    Args:
        training: with ``iterations`` set; fresh, or where a pause left it.
        images: (B, C, H, W) in [0, 1], on the training's device; a few hundred.
        labels: (B,), on the training's device.
        gaps: how many iterations lie between the two; 1 is the paper's "neighbouring".
        starts: "same" begins the attack from the same random points at every iteration, so that
            only the model has changed. "fresh" draws new ones, as training does; part of the
            difference is then due to the start.
        attack: None is the training's own.
        seed: of the random starts of the attack.

    Returns: a row for each iteration, gap and start.
        dataset, seed (of the training), start, gap, iteration;
        mean, std and the quantiles q05 to q95 of the cosine similarity over the images;
        agreement: the share of images with the same predicted class;
        control: the mean cosine similarity with another image of the same class, gap iterations
        ago. A similarity no larger than this says nothing about the image;
        success: the attack's, the share that it makes the model misread now; old_success: the share
        that it misreads of the adversarial examples made gap iterations ago; n: the number of
        images.
    """
    if training.iterations is None:
        raise ValueError(
            "the training has iterations=None and would never end; say how many iterations to "
            "compare."
        )
    if not gaps or min(gaps) < 1 or not starts or set(starts) - set(STARTS):
        raise ValueError(
            f"gaps are {gaps!r} and starts {starts!r}; gaps must be at least 1, starts among "
            f"{', '.join(STARTS)}."
        )
    partner = _another_of_the_class(labels)
    rows = []
    past: dict[str, deque[tuple[Tensor, Tensor]]] = {
        start: deque(maxlen=max(gaps)) for start in starts
    }
    for record in training:
        for start in starts:
            adversarial, logits = _attacked(
                training.model,
                images,
                labels,
                attack or training.attack,
                seed if start == "same" else seed + record.iteration,
            )
            for gap in gaps:
                if gap <= len(past[start]):
                    where = {
                        "dataset": training.data.name,
                        "seed": training.seed,
                        "start": start,
                        "gap": gap,
                        "iteration": record.iteration,
                    }
                    old_examples, old_logits = past[start][-gap]
                    row = where | _compare(old_logits, logits, labels, partner)
                    row["old_success"] = 1 - accuracy(training.model, old_examples, labels)
                    rows.append(row)
            past[start].append((adversarial, logits))
    return pd.DataFrame(rows)


def _another_of_the_class(labels: Tensor) -> Tensor:
    """For each example the previous one of its class, the last for the first; itself if alone."""
    partner = torch.arange(len(labels), device=labels.device)
    for label in labels.unique():
        members = labels == label
        partner[members] = partner[members].roll(1)
    return partner


def _compare(before: Tensor, now: Tensor, labels: Tensor, partner: Tensor) -> dict[str, float]:
    """How alike two models' logits (B, K) on their adversarial examples of the same images are."""
    similarity = cosine_similarity(before, now)
    has_partner = (partner != torch.arange(len(labels), device=labels.device)).cpu()
    control = cosine_similarity(before[partner], now)[has_partner]
    predicted = now.argmax(1)
    row = {
        "mean": similarity.mean().item(),
        "std": similarity.std(correction=0).item(),
    }
    levels = similarity.quantile(torch.tensor(QUANTILES, dtype=similarity.dtype))
    row |= {f"q{100 * q:02.0f}": level for q, level in zip(QUANTILES, levels.tolist(), strict=True)}
    row["agreement"] = (before.argmax(1) == predicted).double().mean().item()
    row["control"] = control.mean().item()
    row["success"] = (predicted != labels).double().mean().item()
    row["n"] = len(labels)
    return row


def staleness(
    training: Training,
    *,
    alphas: Sequence[float] = (0, 0.25, 0.5, 0.75, 0.9),
    ages: Sequence[int] = (1, 2, 5, 10, 20, 50),
    every: int = 10,
    examples: Tensor | None = None,
    at_least: int = 20,
    seed: int = 0,
) -> pd.DataFrame:
    """Test what CAT relies on: the rank correlation of stored weights with fresh gains, by age.

    Runs a training to its end. The weights of Eq. 4 are kept for every alpha, from the same gains,
    which the training computes. So the alphas are compared on one and the same training, whichever
    sampler draws. With a UniformSampler the age of a weight has nothing to do with its size; with a
    CaseSampler the weights of heavy examples are young.

    Args:
        training: fresh (``iteration`` 0), with ``iterations`` set.
        alphas: of Eq. 4, to compare.
        ages: lower edges of the groups of age, rising. A weight's age at the next draw is 1 if its
            example was in the last batch. The last group has no upper edge; ages below the first
            edge are left out.
        every: iterations between two checks. A check attacks ``examples`` with the model of that
            moment.
        examples: indices of training images; None is all of them. Examples that were never drawn
            have no weight to test.
        at_least: a group with fewer examples gives no row.
        seed: of the random starts of the attack in a check.

    Returns: a row for each check, alpha and group: dataset, seed, iteration, alpha, age (the
        group's lower edge), rank_correlation (Spearman), within_class (the same of ranks within
        classes, all that a class-balanced draw compares), n examples. To average over checks, take
        the rows of late iterations.
    """
    if training.iterations is None or training.iteration:
        raise ValueError(
            f"staleness needs a fresh training with iterations set, not iteration "
            f"{training.iteration} of {training.iterations}."
        )
    count = len(training.data.y_train)
    examples = torch.arange(count) if examples is None else examples.cpu()
    images, labels = training.data.train(examples.to(training.device))
    weights = {alpha: torch.ones(count) for alpha in alphas}
    last_drawn = torch.full((count,), -1)
    rows = []
    for record in training:
        batch = training.batch
        assert batch is not None  # there is one after every iteration
        indices = batch.indices.cpu()
        gain = batch.gain.cpu()
        for alpha, weight in weights.items():
            weight[indices] = smooth(weight[indices], gain, alpha)
        last_drawn[indices] = record.iteration
        if record.iteration % every:
            continue
        logits = adversarial_logits(
            training.model, images, labels, training.attack, seed + record.iteration
        )
        fresh = information_gain(logits, labels).cpu()
        drawn = last_drawn[examples] >= 0
        age = record.iteration + 1 - last_drawn[examples]
        group = torch.bucketize(age, torch.tensor(ages), right=True) - 1
        for i, youngest in enumerate(ages):
            members = (group == i) & drawn
            n = int(members.sum())
            if n < at_least:
                continue
            for alpha, weight in weights.items():
                stored = weight[examples][members]
                row = {
                    "dataset": training.data.name,
                    "seed": training.seed,
                    "iteration": record.iteration,
                    "alpha": alpha,
                    "age": youngest,
                    "rank_correlation": rank_correlation(stored, fresh[members]),
                    "within_class": rank_correlation(stored, fresh[members], labels.cpu()[members]),
                    "n": n,
                }
                rows.append(row)
    return pd.DataFrame(rows)
