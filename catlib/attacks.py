"""Eq. 2: projected gradient descent (PGD) on images, the inner maximisation of adversarial training (Eq. 1)."""

from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .kernels.convolution import first_layers
from .kernels.step import compiled_step

RULES, NORMS, BATCH_NORM_MODES = ("sign", "gradient"), ("linf", "l2"), ("eval", "train")


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    step_size: float | None = None,
    steps: int,
    restarts: int = 1,
    random_start: bool = True,
    rule: str = "sign",
    norm: str = "linf",
    batch_norm: str = "eval",
    early_stop: bool = False,
    batch_size: int = 512,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Eq. 2: $\delta^j = \mathrm{Proj}_\epsilon(\delta^{j-1} + \eta\,\mathrm{sign}\,\nabla_\delta L(F(x+\delta^{j-1}), y))$.

    Args:
        model: images (B, C, H, W) to logits (B, K). Left exactly as it was: modes, statistics, gradients.
        images: (B, C, H, W), float32 or float64, in [0, 1].
        labels: (B,), integers in 0..K-1.
        epsilon: radius of the ball, in units of the images; ``norm`` is "linf" or "l2".
        step_size: $\eta$, in units of the images; None is 2.5 epsilon / steps.
        steps: m of Eq. 2, the number of forward-backward passes of a restart.
        restarts: independent random starts; an example keeps the one with the largest loss.
        random_start: $\delta^0$ uniform in the linf ball (l2: uniform direction and radius); else $\delta^0 = 0$.
        rule: "sign", the usual step (l2: the normalised gradient), or "gradient", Eq. 2 exactly as printed,
            which adds the raw gradient of an example's own loss and has no step size.
        batch_norm: mode of batch norm during the attack; "train" uses the batch's statistics, stores none.
        early_stop: for evaluation: an example stops, and costs no more, at its first misclassified iterate, the image included.
        batch_size: images in one forward pass, at most, when restarts or survivors are packed together.
        generator: where random starts come from; None takes fresh entropy. Never the global state.
    Returns: adversarial images, detached, shaped like ``images``, in the ball and in [0, 1].
    Raises: ValueError, TypeError: for any argument outside what is written here; nothing was changed.
    """
    attack = PGD(
        epsilon,
        step_size,
        steps,
        restarts,
        random_start,
        rule,
        norm,
        batch_norm,
        early_stop,
        batch_size,
    )
    return attack(model, images, labels, generator=generator)


@dataclass(frozen=True)
class PGD:
    """The settings of :func:`pgd` as a value: ``attack = PGD(8 / 255); attack(model, images, labels)``."""

    epsilon: float = 8 / 255
    step_size: float | None = None
    steps: int = 10
    restarts: int = 1
    random_start: bool = True
    rule: str = "sign"
    norm: str = "linf"
    batch_norm: str = "eval"
    early_stop: bool = False
    batch_size: int = 512
    compile: bool = False  # a step as one compiled graph: for many batches of one shape; takes a minute at first

    def __post_init__(self):
        for name, low in (("steps", 0), ("restarts", 1), ("batch_size", 1)):
            if not isinstance(value := getattr(self, name), Integral) or value < low:
                raise ValueError(f"{name} is {value!r}; it must be an integer of at least {low}.")
        if self.step_size is None and isinstance(self.epsilon, Real):
            object.__setattr__(self, "step_size", 2.5 * self.epsilon / max(self.steps, 1))
        for name in ("epsilon", "step_size"):
            if not isinstance(value := getattr(self, name), Real) or not 0 <= value < float("inf"):
                raise ValueError(
                    f"{name} is {value!r}; it must be a finite number of at least 0, in units of images in [0, 1]."
                )
        for name, allowed in (("rule", RULES), ("norm", NORMS), ("batch_norm", BATCH_NORM_MODES)):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                f"restarts is {self.restarts} with random_start=False: all restarts would be the same; use 1."
            )

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        generator: torch.Generator | None = None,
        check: bool = True,
    ) -> Tensor:
        """Adversarial images; see :func:`pgd`. ``check=False`` trusts the images and labels (no wait for a GPU)."""
        if self.early_stop:
            return self.attack_until_broken(model, images, labels, generator=generator)[0]
        with _attacking(model, images, labels, self, check) as (gradient, logits_of):
            folded = max(1, min(self.restarts, self.batch_size // max(len(images), 1)))
            worst, worst_loss = images.clone(), images.new_full((len(images),), -torch.inf)
            for first in range(0, self.restarts if len(images) else 0, folded):
                count = min(folded, self.restarts - first)
                x, y = images.repeat(count, 1, 1, 1), labels.long().repeat(count)
                adversarial, move = self._start(x, generator), self._stepper(x)
                step = compiled_step(model, move, y) if self.compile else None
                for _ in range(self.steps):
                    adversarial = (
                        step(adversarial)
                        if step
                        else move(adversarial, gradient(adversarial, y)[0])
                    )
                if self.restarts == 1:
                    return adversarial
                losses = F.cross_entropy(logits_of(adversarial), y, reduction="none").to(worst_loss)
                for candidate, loss in zip(
                    adversarial.chunk(count), losses.chunk(count), strict=True
                ):
                    larger = loss > worst_loss
                    worst[larger], worst_loss[larger] = candidate[larger], loss[larger]
            return worst

    def attack_until_broken(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attack each image until any iterate of any restart is misclassified.

        The survivors are packed into full batches before every step, so a pass is spent on nothing else. Starts are drawn for
        every image at every restart, broken or not: a verdict does not depend on who else survives.

        Returns: adversarial images (B, C, H, W), and the verdict (B,): True where the model was broken.
        """
        with _attacking(model, images, labels, self) as (gradient, logits_of):
            batch_size = batch_size or self.batch_size
            worst, broken = (
                images.clone(),
                torch.zeros(len(images), dtype=torch.bool, device=images.device),
            )
            for restart in range(self.restarts + 1):  # at first, the images themselves
                steps, start = (
                    (self.steps, self._start(images, generator)) if restart else (0, images)
                )
                alive = (~broken).nonzero().squeeze(1)
                current = start[alive]
                for step in range(steps + 1):
                    if not len(alive):
                        break  # not every model takes an empty batch
                    last, kept = step == steps, []
                    for ids, adversarial in zip(
                        alive.split(batch_size), current.split(batch_size), strict=True
                    ):
                        slope, logits = (
                            (None, logits_of(adversarial))
                            if last
                            else gradient(adversarial, labels[ids].long())
                        )
                        right = logits.argmax(1) == labels[ids]
                        worst[ids], broken[ids] = adversarial, ~right
                        if not last:
                            kept.append(
                                self._stepper(images[ids[right]])(adversarial[right], slope[right])
                            )
                    alive, current = alive[~broken[alive]], current if last else torch.cat(kept)
            return worst, broken

    def _start(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        if not self.random_start:
            return images.clone()
        if generator is None:
            (generator := torch.Generator(images.device)).seed()
        noise = torch.empty_like(images)
        if self.norm == "linf":
            return (
                noise.uniform_(-self.epsilon, self.epsilon, generator=generator)
                .add_(images)
                .clamp_(0, 1)
            )
        radius = (
            torch.empty(len(images), 1, 1, 1)
            .to(images)
            .uniform_(0, self.epsilon, generator=generator)
        )
        return images.add(radius * _unit(noise.normal_(generator=generator))).clamp_(0, 1)

    def _stepper(self, images: Tensor):
        """The step of Eq. 2 and its projection, for adversarial versions of these images."""
        if self.norm == "linf":
            lower, upper = (
                (images - self.epsilon).clamp_(min=0),
                (images + self.epsilon).clamp_(max=1),
            )
            if self.rule == "sign":
                return lambda x, slope: x.add(slope.sign_(), alpha=self.step_size).clamp_(
                    lower, upper
                )
            return lambda x, slope: x.add(slope).clamp_(lower, upper)

        def step(x, slope):
            delta = x - images + (self.step_size * _unit(slope) if self.rule == "sign" else slope)
            # a millionth inside, so that rounding cannot carry an image out of the ball
            shrink = (self.epsilon * (1 - 1e-6) / _length(delta)).clamp(max=1)
            return delta.mul_(shrink).add_(images).clamp_(0, 1)

        return step


def _length(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).clamp_(min=torch.finfo(x.dtype).tiny).view(-1, 1, 1, 1)


def _unit(x: Tensor) -> Tensor:
    # first by the largest entry: the square of a small gradient underflows
    return (
        x
        / (scale := x.abs().amax((1, 2, 3), keepdim=True).clamp_(min=torch.finfo(x.dtype).tiny))
        / _length(x / scale)
    )


@contextmanager
def _attacking(model: nn.Module, images: Tensor, labels: Tensor, attack: PGD, check: bool = True):
    """Check the batch, lend the frozen model in attack mode, and hand it back exactly as it was."""
    top = check_batch(images, labels) if check else -1
    changes = [(module, "training", False) for module in model.modules()]
    changes += [
        (parameter, "requires_grad", False)
        for parameter in model.parameters()
        if parameter.requires_grad
    ]
    if attack.batch_norm == "train":
        norms = [
            module
            for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
        changes += [
            (norm, *change)
            for norm in norms
            for change in (("training", True), ("track_running_stats", False))
        ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]

    def forward(x):
        logits = model(x)
        if logits.ndim != 2 or len(logits) != len(x) or top >= logits.shape[1]:
            raise ValueError(
                f"the model returned {tuple(logits.shape)} for {len(x)} images with labels up to {top}; it must "
                f"return logits (B, K), and labels must lie in 0..K-1."
            )
        return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()

    def gradient(x, y):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            logits = forward(x)
            loss = F.cross_entropy(
                logits, y, reduction="sum"
            )  # a sum: each gradient is its example's own, in any batch
            return torch.autograd.grad(loss, x)[0], logits.detach()

    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        with first_layers(model, images.device), torch.inference_mode(False), torch.no_grad():
            yield gradient, forward
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def check_batch(images: Tensor, labels: Tensor) -> int:
    """Refuse what is not a batch of images (B, C, H, W) in [0, 1] with labels (B,); the largest label, -1 if empty."""
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        raise TypeError(
            f"images and labels must be tensors, not {type(images).__name__} and {type(labels).__name__}."
        )
    if images.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"images are {images.dtype}; they must be float32 or float64 in [0, 1] (for bytes: images.float() / 255; "
            f"for speed, keep the images float32 and use torch.autocast)."
        )
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"images {tuple(images.shape)} and labels {tuple(labels.shape)} must be (B, C, H, W) and (B,)."
        )
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        raise TypeError(f"labels are {labels.dtype}; they must be integers in 0..K-1.")
    if images.numel() == 0:
        return -1
    low, high = (value.item() for value in images.aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"pixels go from {low:.4g} to {high:.4g}; each must be a number in [0, 1]: normalise inside the model."
        )
    first, top = (int(value.item()) for value in labels.aminmax())
    if first < 0:
        raise ValueError(
            f"a label is {first}; labels must lie in 0..K-1 (torch would silently ignore -100)."
        )
    return top
