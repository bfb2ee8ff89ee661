"""Eq. 2: projected gradient descent (PGD) on images, the inner maximisation of Eq. 1."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_count
from .interrupts import Interrupts
from .kernels.convolution import fast_first_layers
from .kernels.gpu import weights_cast_once
from .kernels.step import compiled_step
from .modes import attack_mode

RULES = ("sign", "gradient")
NORMS = ("linf", "l2")
BATCH_NORM_MODES = ("eval", "train")

# The limit on the entries of a gradient, and on the step size in the l2 ball: far larger than any
# pixel, yet its square does not overflow a float32.
LARGE = 1e13

ROUNDING = 1e-4  # a pixel so far outside [0, 1] is there by rounding

WHOLE = slice(None)  # the share of a batch that is all of it


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
    start: Tensor | None = None,
    rule: str = "sign",
    norm: str = "linf",
    batch_norm: str = "eval",
    early_stop: bool = False,
    batch_size: int = 512,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Eq. 2: $\delta^j = \mathrm{Proj}_\epsilon(\delta^{j-1} + \eta\,\mathrm{sign}\,g^j)$.

    $g^j = \nabla_\delta L(F(x + \delta^{j-1}), y)$ is the gradient of the loss on the image.

    Args:
        model: F, from images (B, C, H, W) to logits (B, K). It is left as it was found: modes,
            batch-norm statistics, gradients.
        images: x, (B, C, H, W), float32 or float64, in [0, 1].
        labels: y, (B,), integers in 0..K-1.
        epsilon: radius of the ball, in units of the images.
        step_size: $\eta$, in units of the images; None is 2.5 epsilon / steps.
        steps: m of Eq. 2, the number of forward-backward passes of a restart.
        restarts: independent random starts; an example keeps the one with the largest loss.
        random_start: $\delta^0$ is uniform in the linf ball; in the l2 ball its direction and its
            length are uniform. Without a random start, $\delta^0 = 0$.
        start: $\delta^0$ itself, (B, C, H, W), such as what an attack on the same images found
            before. It is first brought into the ball and the images into [0, 1]. Of several
            restarts the first begins there, and the others at random.
        rule: "sign" is the usual step (l2: the gradient divided by its length). "gradient" is Eq. 2
            exactly as printed: it adds the gradient of an example's own loss, and has no step size.
        norm: of the ball, "linf" or "l2".
        batch_norm: "eval" attacks with the stored statistics of batch norm; "train" with those of
            the batch, and stores none. With "train", an example's result depends on its batch. So
            ``batch_size`` matters with several restarts, and the other survivors with
            ``early_stop``.
        early_stop: for evaluation. An example stops, and costs no more, at its first misclassified
            iterate; the image itself counts as one. An iterate with a logit or a gradient that is
            not finite counts as misclassified.
        batch_size: the most images in one forward pass when restarts or survivors are packed
            together.
        generator: where random starts come from. None takes fresh entropy, never the global state.

    Returns: adversarial images, detached, shaped like ``images``, in the ball and in [0, 1]. They
        are finite whatever the model returns: a pixel whose gradient is NaN does not move.

    Raises: ValueError, TypeError: an argument, or what the model returns, is outside what is
        written here. KeyboardInterrupt: Ctrl-C, between two steps. The model is as before.

    Computed in :meth:`PGD._maximise`.
    """
    attack = PGD(
        epsilon=epsilon,
        step_size=step_size,
        steps=steps,
        restarts=restarts,
        random_start=random_start,
        rule=rule,
        norm=norm,
        batch_norm=batch_norm,
        early_stop=early_stop,
        batch_size=batch_size,
    )
    return attack(model, images, labels, start=start, generator=generator)


@dataclass(frozen=True)
class PGD:
    """PGD, Eq. 2: the settings as fields; calling it runs the attack.

    ``attack = PGD(8 / 255)``, then ``attack(model, images, labels)``. :func:`pgd` says what each
    setting means.
    """

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
    # run each step as one compiled graph: worth it for many batches of one shape, as the first
    # takes a minute
    compile: bool = False

    def __post_init__(self) -> None:
        check_count("steps", self.steps, at_least=0)
        check_count("restarts", self.restarts, at_least=1)
        check_count("batch_size", self.batch_size, at_least=1)
        # a frozen dataclass lets no other assignment fill its own fields
        object.__setattr__(self, "epsilon", _checked_number("epsilon", self.epsilon))
        step_size = self.step_size
        if step_size is None:
            step_size = 2.5 * self.epsilon / max(self.steps, 1)
        object.__setattr__(self, "step_size", _checked_number("step_size", step_size))
        for name, allowed in (("rule", RULES), ("norm", NORMS), ("batch_norm", BATCH_NORM_MODES)):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                f"restarts is {self.restarts} with random_start=False: "
                f"all restarts would be the same; use 1."
            )

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        start: Tensor | None = None,
        steps: Tensor | None = None,
        generator: torch.Generator | None = None,
        check: bool = True,
        share: slice = WHOLE,
    ) -> Tensor:
        """Adversarial images; see :func:`pgd`.

        Args:
            model, images, labels, start: as of :func:`pgd`.
            steps: (B,) integers: the steps of each image, instead of the same number for all. Only
                images that still have steps go through the model. Not with ``early_stop`` or
                ``compile``, whose batches it would change.
            generator: as of :func:`pgd`.
            check: False trusts the images, the labels and the numbers of ``start``, and so does not
                wait for a GPU.
            share: only ``images[share]`` are attacked, from the random starts that they have in the
                whole batch.
        """
        if steps is not None:
            self._check_steps(steps, images)
        if self.early_stop:
            adversarial, _ = self.attack_until_broken(
                model, images, labels, start=start, generator=generator, share=share
            )
            return adversarial
        largest_label = check_batch(images, labels) if check else -1
        if start is not None:
            _check_start(start, images, self.epsilon, look=check)
        network = Network(model, largest_label)
        mode = attack_mode(model, self.batch_norm)
        with torch.inference_mode(False), torch.no_grad(), mode as interrupts:
            if self.compile and check:
                network(images[:2])  # for its checks, which the compiled step does not make
            worst = images[share].clone()
            worst_loss = worst.new_full((len(worst),), -torch.inf)
            for count in self._restarts_in_each_pass(len(images)):
                x = images.repeat(count, 1, 1, 1)
                begin = _share_of_each(self._start(x, start, generator), count, share)
                start = None  # only the first restart begins there
                x = _share_of_each(x, count, share)
                y = labels[share].long().repeat(count)
                each = None if steps is None else steps[share].repeat(count)
                adversarial = self._maximise(network, begin, x, y, each, interrupts)
                if self.restarts == 1:
                    return adversarial  # there is no other start to compare it with
                logits = network(adversarial)
                losses = F.cross_entropy(logits, y, reduction="none")
                losses = losses.to(worst_loss)
                # a loss that is not a number counts as the largest
                losses = losses.nan_to_num(nan=torch.inf, posinf=torch.inf)
                for candidate, loss in zip(
                    adversarial.chunk(count), losses.chunk(count), strict=True
                ):
                    larger = loss > worst_loss
                    # no masks as indices: a GPU would have to count what they select
                    worst = torch.where(larger.view(-1, 1, 1, 1), candidate, worst)
                    worst_loss = torch.where(larger, loss, worst_loss)
            return worst

    def _maximise(
        self,
        network: "Network",
        x: Tensor,
        images: Tensor,
        labels: Tensor,
        steps_each: Tensor | None,
        interrupts: Interrupts,
    ) -> Tensor:
        """Eq. 2 from x: ``steps`` times up the slope of the loss and back into the ball."""
        ball = ball_around(images, self.epsilon, self.norm)
        eta: float | Tensor | None = self._eta
        steps = interrupts.polled(range(self.steps))
        model = network.model
        device = images.device
        with fast_first_layers(model, device), weights_cast_once(model, device):
            if self.compile:
                # Numbers would be constants of the graph, and every new value would need a graph of
                # its own. As tensors they are inputs of one graph.
                ball = ball_around(images, _as_tensor(self.epsilon, images), self.norm)
                eta = None if self._eta is None else _as_tensor(self._eta, images)
                # the same three functions as one graph
                with compiled_step(
                    model,
                    lambda x, slope: project(ascend(x, slope, ball, eta), ball),
                    labels,
                ) as step:
                    for _ in steps:
                        x = step(x)
            elif steps_each is not None:
                for done in interrupts.polled(range(int(steps_each.max()))):
                    ids = (steps_each > done).nonzero().squeeze(1)
                    slope = gradient(network, x[ids], labels[ids])
                    part = ball_around(images[ids], self.epsilon, self.norm)
                    x[ids] = project(ascend(x[ids], slope, part, eta), part)
            else:
                for _ in steps:
                    x = project(ascend(x, gradient(network, x, labels), ball, eta), ball)
        return x

    def attack_until_broken(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        start: Tensor | None = None,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        share: slice = WHOLE,
    ) -> tuple[Tensor, Tensor]:
        """Attack each image until any iterate of any restart is misclassified.

        Before every step, the images that still survive are packed into full batches, so that no
        forward pass is spent on the others. At every restart, a start is drawn for every image,
        whether it survives or not. With ``batch_norm="eval"``, the result for one image therefore
        does not depend on which others survive. With ``share`` only ``images[share]`` are attacked,
        from the starts that they have among all.

        Returns: adversarial images (B, C, H, W), and (B,) bool: True where the attack succeeded. A
            logit or a gradient that is not finite counts as success.
        """
        if batch_size is None:
            batch_size = self.batch_size
        check_count("batch_size", batch_size, at_least=1)
        network = Network(model, check_batch(images, labels))
        if start is not None:
            _check_start(start, images, self.epsilon)
        mode = attack_mode(model, self.batch_norm)
        with torch.inference_mode(False), torch.no_grad(), mode as interrupts:
            state = _AttackState(images[share], labels[share])
            survivors = state.survivors()
            # every image is its own first iterate
            for ids, x in interrupts.polled(_batches(survivors, state.images, batch_size)):
                state.judge(ids, x, network(x))
            for _ in range(self.restarts):
                x = self._start(images, start, generator)[share]
                start = None  # only the first restart begins there
                survivors = state.survivors()
                iterates = x[survivors]
                with fast_first_layers(model, images.device):
                    for _ in range(self.steps):
                        batches = interrupts.polled(_batches(survivors, iterates, batch_size))
                        survivors, iterates = self._step_of_survivors(network, state, batches)
                for ids, x in interrupts.polled(_batches(survivors, iterates, batch_size)):
                    state.judge(ids, x, network(x))
            return state.iterates, state.broken

    def _step_of_survivors(
        self,
        network: "Network",
        state: "_AttackState",
        batches: Iterator[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """Judge the survivors' iterates, and take one step of Eq. 2 with those that still survive.

        Args:
            batches: the survivors' indices and iterates.

        Returns: the indices of those that still survive, and their next iterates.
        """
        surviving = [state.no_ids]
        moved = [state.no_images]
        for ids, x in batches:
            slope, logits = gradient_and_logits(network, x, state.labels[ids])
            right = state.judge(ids, x, logits, slope)
            ids = ids[right]
            ball = ball_around(state.images[ids], self.epsilon, self.norm)
            surviving.append(ids)
            moved.append(project(ascend(x[right], slope[right], ball, self._eta), ball))
        return torch.cat(surviving), torch.cat(moved)

    def _restarts_in_each_pass(self, images: int) -> Iterator[int]:
        """How many restarts share each forward pass: as many as fit into ``batch_size`` images."""
        if images == 0:
            return
        most = max(1, min(self.restarts, self.batch_size // images))
        for first in range(0, self.restarts, most):
            yield min(most, self.restarts - first)

    def _start(
        self, images: Tensor, start: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        r"""Images plus $\delta^0$. ``start`` is that of the first images; the others have none."""
        if start is not None:
            begun = given_start(images[: len(start)], start, self.epsilon, self.norm)
            others = images[len(start) :]
            if not len(others):
                return begun
            return torch.cat([begun, self._start(others, None, generator)])
        if self.random_start:
            return random_start(images, self.epsilon, self.norm, generator)
        return images.clone()

    def _check_steps(self, steps: Any, images: Tensor) -> None:
        """Refuse what cannot be the number of steps of each of these images."""
        for name in ("early_stop", "compile"):
            if getattr(self, name):
                raise ValueError(
                    f"steps are given for each image, with {name}=True; use {name}=False."
                )
        check_integers("steps", steps, len(images))
        if len(steps) and steps.min() < 0:
            raise ValueError(f"an image has {steps.min()} steps; it must have at least 0.")

    @property
    def _eta(self) -> float | None:
        """The step size of Eq. 2; none if Eq. 2 is taken as printed."""
        if self.rule == "gradient" or self.step_size is None:
            return None
        if self.norm == "linf":
            # a step of 1 takes any pixel to the edge of [0, 1] or beyond; a larger one does no more
            return min(self.step_size, 1.0)
        return min(self.step_size, LARGE)


def _share_of_each(repeated: Tensor, count: int, share: slice) -> Tensor:
    """Of images that repeat a batch ``count`` times, those of a share of the batch, each time."""
    return repeated.unflatten(0, (count, -1))[:, share].flatten(0, 1)


# The parts of Eq. 2


class LinfBall(NamedTuple):
    """The images whose every pixel is at most epsilon from the original's, and in [0, 1]: a box."""

    lower: Tensor
    upper: Tensor


class L2Ball(NamedTuple):
    """The images at most epsilon from the original in Euclidean distance, and in [0, 1]."""

    images: Tensor
    epsilon: float | Tensor


def ball_around(images: Tensor, epsilon: float | Tensor, norm: str) -> LinfBall | L2Ball:
    """Where an attack of these images may go. Made once, for all of its steps."""
    if norm == "l2":
        return L2Ball(images, epsilon)
    lower = (images - epsilon).clamp_(min=0)
    upper = (images + epsilon).clamp_(max=1)
    return LinfBall(lower, upper)


def random_start(
    images: Tensor, epsilon: float, norm: str, generator: torch.Generator | None = None
) -> Tensor:
    r"""Images plus $\delta^0$, clipped to [0, 1].

    In the linf ball $\delta^0$ is uniform. In the l2 ball its direction and its length are uniform.
    """
    if generator is None:
        generator = torch.Generator(images.device)
        generator.seed()
    noise = torch.empty_like(images)
    if norm == "linf":
        noise.uniform_(-epsilon, epsilon, generator=generator)
        return noise.add_(images).clamp_(0, 1)
    length = images.new_empty(len(images), 1, 1, 1).uniform_(0, epsilon, generator=generator)
    direction = _unit(noise.normal_(generator=generator))
    return images.add(length * direction).clamp_(0, 1)


def given_start(images: Tensor, start: Tensor, epsilon: float, norm: str) -> Tensor:
    """Images plus the perturbations ``start``, brought into the ball and into [0, 1]."""
    ball = ball_around(images, epsilon, norm)
    delta = start.to(images.dtype).clamp(-LARGE, LARGE)
    return project(images + delta if isinstance(ball, LinfBall) else delta, ball)


def gradient(network: "Network", x: Tensor, labels: Tensor) -> Tensor:
    r"""$\nabla_\delta L(F(x + \delta), y)$ of each example's own cross-entropy, (B, C, H, W)."""
    return gradient_and_logits(network, x, labels)[0]


def gradient_and_logits(network: "Network", x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`gradient`, and the logits (B, K) that it was computed from."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = network(x)
        # the sum: so each example's gradient is that of its own loss, whatever the batch
        loss = F.cross_entropy(logits, labels, reduction="sum")
        slope = None
        if loss.requires_grad:
            (slope,) = torch.autograd.grad(loss, x, allow_unused=True)
    if slope is None:
        raise ValueError(
            "the model's logits have no gradient with respect to the images: somewhere the model "
            "detaches them, or leaves torch (detach, no_grad, numpy). PGD needs the gradient; "
            "judge such a model by an attack that needs none."
        )
    return slope, logits.detach()


def ascend(x: Tensor, slope: Tensor, ball: LinfBall | L2Ball, eta: float | Tensor | None) -> Tensor:
    r"""$\delta + \eta\,\mathrm{sign}(\nabla_\delta L)$, not yet projected; overwrites ``slope``.

    In an l2 ball the slope is divided by its length instead. Without ``eta`` it is added as it is.
    ``eta`` is a tensor of no dimensions in a compiled step.

    Returns: what :func:`project` takes: in a linf ball the image $x + \delta$, whose pixels it
        clamps; in an l2 ball the perturbation $\delta$, whose length it needs.
    """
    if isinstance(ball, LinfBall) and eta is not None:
        sign = slope.sign_()  # of NaN it is 0
        if isinstance(eta, Tensor):
            return x + eta * sign
        return x.add(sign, alpha=eta)  # in one pass
    slope = slope.nan_to_num_(nan=0.0).clamp_(-LARGE, LARGE)
    if isinstance(ball, LinfBall):
        return x.add(slope)
    delta = x - ball.images
    if eta is None:
        return delta + slope
    return delta + eta * _unit(slope)


def project(moved: Tensor, ball: LinfBall | L2Ball) -> Tensor:
    r"""$\mathrm{Proj}_\epsilon$: back into the ball from where :func:`ascend` went.

    In a linf ball it gives the nearest images. For l2 a perturbation that is too long is shortened
    and the image then clipped to [0, 1], which stays in the ball but may not be the nearest image.
    Works in place, on memory that :func:`ascend` has just made.
    """
    if isinstance(ball, LinfBall):
        return moved.clamp_(ball.lower, ball.upper)
    # a millionth inside the ball, so that rounding cannot carry an image out of it
    shrink = (ball.epsilon * (1 - 1e-6) / _length(moved)).clamp(max=1)
    return moved.mul_(shrink).add_(ball.images).clamp_(0, 1)


def _as_tensor(number: float, like: Tensor) -> Tensor:
    """A number as a tensor of no dimensions; made on the device, which then waits for no copy."""
    return like.new_full((), number)


def _length(x: Tensor) -> Tensor:
    tiny = torch.finfo(x.dtype).tiny
    return x.flatten(1).norm(dim=1).clamp_(min=tiny).view(-1, 1, 1, 1)


def _unit(x: Tensor) -> Tensor:
    tiny = torch.finfo(x.dtype).tiny
    # first divided by the largest entry, because the square of a small gradient underflows
    largest = x.abs().amax((1, 2, 3), keepdim=True).clamp_(min=tiny)
    scaled = x / largest
    return scaled / _length(scaled)


# Attacks that stop


class _AttackState:
    """Of each image, its latest iterate and whether the attack has succeeded on it."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels.long()
        self.iterates = images.clone()  # the latest that the model classified
        # True where the attack succeeded
        self.broken = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        # for torch.cat, which needs at least one part
        self.no_ids = torch.zeros(0, dtype=torch.long, device=images.device)
        self.no_images = images[:0]

    def survivors(self) -> Tensor:
        """Indices of the images that no iterate has broken yet."""
        return (~self.broken).nonzero().squeeze(1)

    def judge(
        self, ids: Tensor, iterates: Tensor, logits: Tensor, slope: Tensor | None = None
    ) -> Tensor:
        """Store these iterates of the images ``ids``, and which of them are misclassified.

        Returns: (B,) bool: True where the model is right, and logits and gradient are finite.
        """
        right = is_right(logits, self.labels[ids])
        if slope is not None:
            right &= has_finite_gradient(slope)
        self.iterates[ids] = iterates
        self.broken[ids] = ~right
        return right


def _batches(ids: Tensor, x: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices and images in batches, none of them empty: not every model takes an empty batch."""
    if len(ids):
        yield from zip(ids.split(size), x.split(size), strict=True)


# Checks


@dataclass(frozen=True)
class Network:
    """A model whose logits are checked: ``network(x)`` is (B, K), float32 or float64.

    Args:
        largest_label: of the labels that the logits are compared with; -1 if it is not known.
    """

    model: nn.Module
    largest_label: int = -1

    def __call__(self, x: Tensor) -> Tensor:
        # a copy, as a model may work in place; torch itself protects an x that requires a gradient
        logits = self.model(x if x.requires_grad else x.clone())
        return check_logits(logits, len(x), self.largest_label)


def check_logits(logits: Any, count: int, largest_label: int = -1) -> Tensor:
    """Refuse what a model returns for ``count`` images if it is not logits (B, K).

    Returns: the logits, in float32 or float64.
    """
    if not isinstance(logits, Tensor):
        what = type(logits).__name__
        if isinstance(logits, tuple | list | dict):
            what = f"{what} of {len(logits)}"
        raise TypeError(
            f"the model returned a {what}; it must return a tensor of logits (B, K). Wrap it in a "
            f"module that returns the logits alone: its part [0], or ['logits'], or .logits."
        )
    shape = tuple(logits.shape)
    if logits.ndim != 2 or len(logits) != count:
        raise ValueError(
            f"the model returned {shape} for {count} images; it must return logits (B, K)."
        )
    if not logits.dtype.is_floating_point:
        raise TypeError(f"the model returned {logits.dtype}; logits must be floating point.")
    if largest_label >= logits.shape[1]:
        raise ValueError(
            f"a label is {largest_label}; the model's logits {shape} allow 0..{shape[1] - 1}."
        )
    if logits.dtype in (torch.float32, torch.float64):
        return logits
    return logits.float()


def is_right(logits: Tensor, labels: Tensor) -> Tensor:
    """Which logits (B, K) classify as labelled, (B,). Logits that are not all finite never do."""
    return (logits.argmax(1) == labels.long()) & _is_finite(logits)


def has_finite_gradient(slope: Tensor) -> Tensor:
    """Which gradients (B, C, H, W) are finite throughout, (B,)."""
    return _is_finite(slope.flatten(1))


def _is_finite(x: Tensor) -> Tensor:
    """Which rows of x (B, n) are finite throughout, (B,): 0 times NaN or infinity is NaN."""
    return (0 * x).sum(1) == 0  # many times faster than isfinite().all(1)


def check_radius(name: str, epsilon: float, norm: str) -> None:
    """Raise ValueError if a linf ball of this radius holds every image, as 8 does, meant as 8/255.

    :class:`PGD` itself takes such a radius: as a ball that never binds.
    """
    if norm == "linf" and epsilon >= 1:
        raise ValueError(
            f"{name} is {epsilon:g}; in the linf ball of images in [0, 1] it must be below 1, as "
            f"from 1 on any image may become any other. Did you mean {epsilon:g}/255?"
        )


def check_integers(name: str, values: Any, count: int) -> None:
    """Raise TypeError or ValueError if these are not ``count`` integers, in a tensor."""
    if not isinstance(values, Tensor) or values.is_floating_point() or values.is_complex():
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name} are {kind}; they must be a tensor of integers ({count},).")
    if values.shape != (count,) or values.dtype == torch.bool:
        raise ValueError(
            f"{name} are {values.dtype} of shape {tuple(values.shape)}; they must be integers "
            f"({count},), one for each image."
        )


def _checked_number(name: str, value: Any) -> float:
    """The setting, checked: an int as it is, any other number as a float."""
    if not isinstance(value, Real) or not 0 <= float(value) < float("inf"):
        raise ValueError(
            f"{name} is {value!r}; it must be a finite number of at least 0, "
            f"in units of images in [0, 1]."
        )
    return value if isinstance(value, int) else float(value)


def _check_start(start: Any, images: Tensor, epsilon: float, *, look: bool = True) -> None:
    """Refuse what cannot be the first perturbations of these images.

    ``look=False`` leaves out the look at every number, which would wait for a GPU.
    """
    if not isinstance(start, Tensor) or not start.is_floating_point():
        kind = start.dtype if isinstance(start, Tensor) else type(start).__name__
        raise TypeError(
            f"start is {kind}; it must be a floating-point tensor of perturbations, in units of "
            f"the images."
        )
    if start.shape != images.shape:
        raise ValueError(
            f"start is {tuple(start.shape)} for images {tuple(images.shape)}; it must have one "
            f"perturbation an image, of its shape."
        )
    if start.device != images.device:
        raise ValueError(
            f"start is on {start.device}, the images are on {images.device}; move it there."
        )
    if not look or not start.numel():
        return
    if not start.isfinite().all():
        worst = start[~start.isfinite()][0].item()
        raise ValueError(f"start has a perturbation of {worst}; each must be a finite number.")
    largest = start.abs().max().item()
    if largest > epsilon and (start - images).abs().max() <= 1.001 * epsilon:
        raise ValueError(
            f"start seems to be adversarial images (a pixel of {largest:.3g}, and none farther "
            f"than epsilon {epsilon:.3g} from its image); give start - images, the perturbations."
        )


def check_adversarial(adversarial: Any, images: Tensor, *, finite: bool = True) -> Tensor:
    """Refuse what an attack returns for these images if it is not adversarial versions of them.

    ``finite=False`` lets pixels pass that are not finite, and leaves out every look at the pixels
    that would wait for a GPU.

    Returns: the adversarial images, detached.
    """
    if not isinstance(adversarial, Tensor):
        raise TypeError(
            f"the attack returned a {type(adversarial).__name__}; it must return the adversarial "
            f"images as a tensor {tuple(images.shape)}."
        )
    if adversarial.shape != images.shape:
        raise ValueError(
            f"the attack returned {tuple(adversarial.shape)} for images {tuple(images.shape)}."
        )
    if adversarial.dtype != images.dtype or adversarial.device != images.device:
        raise TypeError(
            f"the attack returned {adversarial.dtype} on {adversarial.device} for images of "
            f"{images.dtype} on {images.device}; they must be the same."
        )
    if finite and not adversarial.isfinite().all():
        raise ValueError(
            "the attack returned a pixel that is NaN or infinite; each must be a number in [0, 1]."
        )
    if finite or adversarial.device.type == "cpu":
        check_pixels("the attack returned pixels", adversarial)
    return adversarial.detach()


def check_pixels(what: str, images: Tensor) -> None:
    """Raise ValueError if pixels lie outside [0, 1] by more than rounding.

    The message begins with ``what``. Pixels that are not finite pass: they show in the loss.
    """
    if images.numel() == 0:
        return
    low, high = (value.item() for value in images.detach().aminmax())
    is_finite = math.isfinite(low) and math.isfinite(high)
    if is_finite and (low < -ROUNDING or high > 1 + ROUNDING):
        raise ValueError(
            f"{what} from {low:.4g} to {high:.4g}; they must lie in [0, 1]: clamp(0, 1) what an "
            "attack or an augmentation made of them, and normalise inside the model."
        )


def check_batch(images: Tensor, labels: Tensor) -> int:
    """Refuse what is not a batch of images (B, C, H, W) in [0, 1] with labels (B,).

    Returns: the largest label, or -1 of an empty batch.
    """
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        raise TypeError(
            f"images and labels must be tensors, not {type(images).__name__} and "
            f"{type(labels).__name__}."
        )
    if images.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"images are {images.dtype}; they must be float32 or float64 in [0, 1] "
            f"(for bytes: images.float() / 255; for speed, keep the images float32 and use "
            f"torch.autocast)."
        )
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"images {tuple(images.shape)} and labels {tuple(labels.shape)} must be "
            f"(B, C, H, W) and (B,)."
        )
    if labels.dtype.is_floating_point or labels.dtype.is_complex or labels.dtype == torch.bool:
        raise TypeError(f"labels are {labels.dtype}; they must be integers in 0..K-1.")
    if images.numel() == 0:
        return -1
    low, high = (value.item() for value in images.aminmax())
    if not (low >= 0 and high <= 1):
        if low > -ROUNDING and high < 1 + ROUNDING:
            raise ValueError(
                f"pixels go from {low:.9g} to {high:.9g}, outside [0, 1] by a rounding error; "
                f"call images.clamp(0, 1)."
            )
        raise ValueError(
            f"pixels go from {low:.4g} to {high:.4g}; each must be a number in [0, 1]: "
            f"normalise inside the model."
        )
    # torch finds no extremes of uint16, uint32 and uint64
    smallest, largest = (int(value.item()) for value in labels.long().aminmax())
    if smallest < 0:
        raise ValueError(
            f"a label is {smallest}; labels must lie in 0..K-1 (torch would silently ignore -100)."
        )
    return largest
