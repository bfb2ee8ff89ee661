"""Other losses of adversarial training, and the attack of TRADES.

Each goes into the same loop, with either sampler: ``Training(..., loss=TRADES())``. The logits of
the adversarial images, which a loss returns, give Eq. 3 as always.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attacks import check_logits
from ..modes import attack_mode


@dataclass(frozen=True)
class TRADES:
    """TRADES (Zhang et al., ICML 2019): cross-entropy on clean images + beta KL(clean || adv).

    Both terms are means over the batch; the second pulls the prediction of an adversarial image to
    that of its clean one. It is meant for the examples of :class:`KLAttack`. An update costs two
    passes an image.

    Args:
        beta: the weight of the second term, 1 / lambda in the paper; 6 is its value for CIFAR-10.
    """

    beta: float = 6.0

    def __call__(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss and the adversarial logits (B, K), for :class:`catlib.Training`."""
        clean_logits = check_logits(model(images), len(labels))
        adversarial_logits = check_logits(model(adversarial), len(labels))
        accuracy_loss = F.cross_entropy(clean_logits, labels)
        stability_loss = divergence(clean_logits, adversarial_logits).mean()
        return accuracy_loss + self.beta * stability_loss, adversarial_logits


@dataclass(frozen=True)
class MART:
    """MART (Wang et al., ICLR 2020): TRADES that looks most at what is misclassified.

    With p the probabilities of the adversarial image and q those of the clean one, y the label and
    k the most probable wrong class, the loss of an example is

        -log p_y - log(1 - p_k) + beta KL(q || p) (1 - q_y)

    and that of the batch its mean. The examples come from PGD on the cross-entropy. An update costs
    two passes an image.

    Args:
        beta: the weight of the last term, lambda in the paper.
    """

    beta: float = 6.0

    def __call__(
        self, model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The loss and the adversarial logits (B, K), for :class:`catlib.Training`."""
        clean_logits = check_logits(model(images), len(labels))
        adversarial_logits = check_logits(model(adversarial), len(labels))
        classes = labels[:, None]
        wrong_logits = adversarial_logits.scatter(1, classes, -torch.inf)
        best_wrong = wrong_logits.argmax(1, keepdim=True)
        # log(1 - p_k) from logits, as 1 - p_k itself rounds to 0 where the model is sure of k
        all_but_best_wrong = adversarial_logits.scatter(1, best_wrong, -torch.inf)
        log_not_wrong = all_but_best_wrong.logsumexp(1) - adversarial_logits.logsumexp(1)
        boosted = F.cross_entropy(adversarial_logits, labels, reduction="none") - log_not_wrong
        doubt = 1 - clean_logits.softmax(1).gather(1, classes).squeeze(1)
        stability = divergence(clean_logits, adversarial_logits) * doubt
        return (boosted + self.beta * stability).mean(), adversarial_logits


def divergence(clean_logits: Tensor, adversarial_logits: Tensor) -> Tensor:
    """KL(q || p) of each example, (B,): q from the clean logits (B, K), p from the adversarial."""
    log_q = clean_logits.log_softmax(1)
    log_p = adversarial_logits.log_softmax(1)
    return F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(1)


@dataclass(frozen=True)
class KLAttack:
    """The attack of TRADES: signed steps that raise KL(clean || adversarial), projected.

    The label is not used. The model is in eval mode. The start is Gaussian noise of standard
    deviation 0.001 on the image, since the gradient is zero at the image itself. It draws from
    torch's global random state, which a Training seeds. It costs ``steps + 1`` passes an image.

    Args:
        epsilon: of the threat model (l-inf), in units of images in [0, 1].
        step_size: None is 2.5 epsilon / steps.
        steps: of the attack.
    """

    epsilon: float = 8 / 255
    step_size: float | None = None
    steps: int = 10

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images (B, C, H, W)."""
        step_size = self.step_size
        if step_size is None:
            step_size = 2.5 * self.epsilon / max(1, self.steps)
        lower = (images - self.epsilon).clamp(0, 1)
        upper = (images + self.epsilon).clamp(0, 1)
        adversarial = (images + 0.001 * torch.randn_like(images)).clamp(lower, upper)
        with attack_mode(model):
            with torch.no_grad():
                # a copy, because a CUDA graph writes over its output
                clean_logits = check_logits(model(images), len(images)).clone()
            for _ in range(self.steps):
                with torch.enable_grad():
                    adversarial = adversarial.detach().requires_grad_()
                    logits = check_logits(model(adversarial), len(images))
                    total = divergence(clean_logits, logits).sum()
                    (slope,) = torch.autograd.grad(total, adversarial)
                stepped = adversarial.detach() + step_size * slope.sign()
                adversarial = stepped.clamp(lower, upper)
        return adversarial.detach()
