"""Fig. 1: how alike old and new adversarial examples are to the model, and what an old weight still says.

CAT weighs an example by adversarial examples of earlier iterations. Two measurements, each along a training:

    table = neighbour_similarity(training, images, labels)   # Fig. 1: similarity of predictions, a row an iteration
    table = staleness(training)                              # the claim itself: does an old weight still rank examples?
"""

from collections import deque
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from catlib import PGD, Training, information_gain, smooth
from catlib.evaluation import _evaluating

STARTS = ("same", "fresh")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def cosine_similarity(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    r"""$\cos(p, q) = p \cdot q \,/\, (\|p\| \|q\|)$ of the predictions p and q, the softmax of the logits.

    Args:
        logits_a, logits_b: (B, K), of the same B examples.

    Returns: (B,) float64, on the CPU, in [0, 1]: 1 for equal predictions, 0 for two sure and different ones.
    """
    if logits_a.ndim != 2 or logits_a.shape != logits_b.shape:
        raise ValueError(
            f"logits {tuple(logits_a.shape)} and {tuple(logits_b.shape)} must both be (B, K)."
        )
    p, q = (logits.detach().cpu().double().softmax(1) for logits in (logits_a, logits_b))
    return ((p * q).sum(1) / (p.norm(dim=1) * q.norm(dim=1))).clamp(max=1)


def rank_correlation(a: Tensor, b: Tensor, within: Tensor | None = None) -> float:
    """Spearman's: the correlation of the ranks, equal values sharing one; nan if either does not vary.

    Args:
        within: (n,) groups. Ranks are then places within a group, from its middle, as a share of its size: how well
            the order inside groups agrees, whatever lies between them.
    """
    values = pd.DataFrame(
        {"a": a.detach().cpu().double().numpy(), "b": b.detach().cpu().double().numpy()}
    )
    ranks = values.groupby(
        torch.zeros(len(a)).numpy() if within is None else within.cpu().numpy()
    ).rank(pct=True)
    if within is not None:
        ranks -= ranks.groupby(within.cpu().numpy()).transform("mean")
    return (
        ranks.a.corr(ranks.b) if ranks.a.nunique() > 1 and ranks.b.nunique() > 1 else float("nan")
    )


def adversarial_logits(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Callable,
    seed: int,
    batch_size: int = 512,
) -> Tensor:
    """Logits (B, K) on adversarial examples made now, from random starts of this seed.

    In eval mode and float32; the model and the global random state are left as they were.
    """
    logits = []
    with _evaluating(model, images):
        torch.manual_seed(seed)
        options = (
            {"generator": torch.Generator(images.device).manual_seed(seed)}
            if isinstance(attack, PGD)
            else {}
        )
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            adversarial = attack(model, x, y, **options)
            with torch.no_grad():
                logits.append(model(adversarial))
    return torch.cat(logits)


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
    """Fig. 1, at every iteration: run a training to its end and compare its adversarial examples with earlier ones.

    After each iteration the same images are attacked anew. Compared are the predictions of today's model on
    today's adversarial examples with those of ``gap`` iterations ago on those of then.

    Args:
        training: with ``iterations`` set; fresh, or where a pause left it.
        images, labels: (B, C, H, W) in [0, 1] and (B,), on the training's device; a few hundred.
        gaps: how many iterations lie between the two; 1 is the paper's "neighbouring".
        starts: "same" begins the attack from the same random points at every iteration, so that only the model
            has changed; "fresh" draws new ones, as training does, and part of the difference is then the start.
        attack: None is the training's own.

    Returns: a row for each iteration, gap and start: dataset, seed (of the training), start, gap, iteration;
        mean, std and quantiles q05..q95 of the cosine similarity over the images; agreement, the share with the
        same predicted class; control, the mean cosine similarity with another image of the same class gap
        iterations ago, below which similarity says nothing about the image; success, the attack's; n images.
    """
    if training.iterations is None:
        raise ValueError(
            "the training has iterations=None and would never end; say how many iterations to compare."
        )
    if not gaps or min(gaps) < 1 or not starts or set(starts) - set(STARTS):
        raise ValueError(
            f"gaps are {gaps!r} and starts {starts!r}; gaps must be at least 1, starts among {', '.join(STARTS)}."
        )
    partner = torch.arange(len(labels), device=labels.device)
    for label in labels.unique():
        partner[labels == label] = partner[labels == label].roll(1)
    has_partner = (partner != torch.arange(len(labels), device=labels.device)).cpu()
    past, rows = {start: deque(maxlen=max(gaps)) for start in starts}, []
    for record in training:
        for start in starts:
            logits = adversarial_logits(
                training.model,
                images,
                labels,
                attack or training.attack,
                seed if start == "same" else seed + record.iteration,
            )
            for gap in (gap for gap in gaps if gap <= len(past[start])):
                before = past[start][-gap]
                similarity, control = (
                    cosine_similarity(before, logits),
                    cosine_similarity(before[partner], logits)[has_partner],
                )
                predicted, quantiles = (
                    logits.argmax(1),
                    similarity.quantile(torch.tensor(QUANTILES, dtype=torch.float64)),
                )
                rows.append(
                    {
                        "dataset": training.data.name,
                        "seed": training.seed,
                        "start": start,
                        "gap": gap,
                        "iteration": record.iteration,
                        "mean": similarity.mean().item(),
                        "std": similarity.std(correction=0).item(),
                        **{
                            f"q{100 * q:02.0f}": value.item()
                            for q, value in zip(QUANTILES, quantiles, strict=True)
                        },
                        "agreement": (before.argmax(1) == predicted).double().mean().item(),
                        "control": control.mean().item(),
                        "success": (predicted != labels).double().mean().item(),
                        "n": len(labels),
                    }
                )
            past[start].append(logits)
    return pd.DataFrame(rows)


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
    """What CAT relies on, tested: the rank correlation of stored weights with fresh gains, against the weights' age.

    Runs a training to its end. The weights of Eq. 4 are kept for every alpha from the same gains, those that
    the training computes, so the alphas are compared on one and the same training, whichever sampler draws.
    With a UniformSampler age has nothing to do with weight; with a CaseSampler heavy examples are young.

    Args:
        training: fresh (``iteration`` 0), with ``iterations`` set.
        ages: edges of the groups of age, rising; a weight's age at the next draw is 1 if its example was in the
            last batch. The last group has no upper end; ages below the first edge are left out.
        every: iterations between two checks, in which ``examples`` are attacked with the model of that moment.
        examples: indices of training images; None is all of them. Never drawn ones have no weight to test.
        at_least: a group with fewer examples gives no row.

    Returns: a row for each check, alpha and group: dataset, seed, iteration, alpha, age (the group's lower edge),
        rank_correlation (Spearman), within_class (the same of ranks within classes, all that a class-balanced draw
        compares), n examples. To average over checks, take the rows of late iterations.
    """
    if training.iterations is None or training.iteration:
        raise ValueError(
            f"staleness needs a fresh training with iterations set, not iteration {training.iteration} of "
            f"{training.iterations}."
        )
    count, rows = len(training.data.y_train), []
    examples = torch.arange(count) if examples is None else examples.cpu()
    images, labels = training.data.train(examples.to(training.device))
    weights, drawn = {alpha: torch.ones(count) for alpha in alphas}, torch.full((count,), -1)
    for record in training:
        indices, gain = training.batch.indices.cpu(), training.batch.gain.cpu()
        for weight, alpha in zip(weights.values(), alphas, strict=True):
            weight[indices] = smooth(weight[indices], gain, alpha)
        drawn[indices] = record.iteration
        if record.iteration % every:
            continue
        logits = adversarial_logits(
            training.model, images, labels, training.attack, seed + record.iteration
        )
        fresh = information_gain(logits, labels).cpu()
        age = torch.where(drawn >= 0, record.iteration + 1 - drawn, 0)[examples]
        group = torch.bucketize(age, torch.tensor(ages), right=True) - 1
        for i, first in enumerate(ages):
            mine = (group == i) & (age > 0)
            if (n := int(mine.sum())) >= at_least:
                rows += [
                    {
                        "dataset": training.data.name,
                        "seed": training.seed,
                        "iteration": record.iteration,
                        "alpha": alpha,
                        "age": first,
                        "rank_correlation": rank_correlation(
                            stored := weights[alpha][examples][mine], fresh[mine]
                        ),
                        "within_class": rank_correlation(stored, fresh[mine], labels.cpu()[mine]),
                        "n": n,
                    }
                    for alpha in alphas
                ]
    return pd.DataFrame(rows)
