"""A guard against catastrophic overfitting, for every training whose attack has few steps.

In catastrophic overfitting (Wong, Rice and Kolter, ICLR 2020) a model learns within a few
iterations to be right on what its own attack finds, and loses its robustness: PGD with more steps
then breaks nearly every image. ``for record in guarded(training): ...`` looks for that from time to
time, and undoes it.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any

from torch import nn

from .attacks import PGD, check_count
from .evaluation import robust_accuracy
from .interrupts import deferred_interrupts
from .training import Record, Training

JUDGE_STEPS = 10
# each judged image goes through the model once as it is, once a step, and once at the end
JUDGE_PASSES = JUDGE_STEPS + 2
STANDARD_ERRORS = 3  # a difference below so many may be chance


@dataclass(frozen=True)
class GuardedRecord(Record):
    """A Record, and what the guard did after its iteration.

    Examples, passes and seconds are all that were spent: checks and iterations that were undone
    count. After a collapse, iteration goes back to that of the last good state.
    """

    checked: float | None = None  # share of the checked images that stood PGD-10; None: no check
    collapses: int = 0  # how often training has collapsed and gone back so far


def smaller_step(attack: Any) -> Any:
    """The same attack with half the step size. It costs no pass more."""
    step_size = attack.epsilon if attack.step_size is None else attack.step_size
    return replace(attack, step_size=step_size / 2)


def one_step_more(attack: PGD) -> PGD:
    """The same attack with one step more, all of which together reach as far as before."""
    assert attack.step_size is not None, "a PGD has a step size"
    steps = attack.steps + 1
    return replace(attack, steps=steps, step_size=attack.step_size * attack.steps / steps)


def guarded(training: Training, **options: Any) -> Iterator[GuardedRecord]:
    """The records of a training that a :class:`Guard` watches.

    Args:
        training: what is watched, and taken back after a collapse.
        options: of the Guard.
    """
    guard = Guard(training, **options)
    while (record := next(training, None)) is not None:
        yield guard.watch(record)


class Guard:
    """Looks for a collapse of a training, goes back to the last good state, and changes the attack.

    ``guard = Guard(training)``, then after every iteration ``record = guard.watch(record)``;
    :func:`guarded` is that loop. Whenever enough passes have been made to afford it, and at the
    end, it attacks some images of the last batch with PGD-10. The training has collapsed if the
    model is right far more often on what its own attack has found of them. Then it returns to the
    state that it had at the last check without a collapse, at first to the one in which the guard
    was built, and goes on with a milder attack. One copy of the training's state is kept.

    Args:
        training: one whose attack has an epsilon, as PGD and NFGSM have.
        share: of all passes, at most so many are spent on checks. A training too short for a single
            check at this share is not checked.
        size: the most images in a check.
        ratio: a collapse is a robust accuracy below this share of the accuracy on what the
            training's own attack has found, by more than chance.
        remedy: ``remedy(attack) -> attack``, after each collapse. None is :func:`smaller_step`
            with a memory, where small steps add up from visit to visit, and for what is no PGD;
            :func:`one_step_more` otherwise.
        most: how often training goes back; after that a collapse is only reported, with a warning.

    Raises: TypeError, ValueError: an argument outside what is written here.
    """

    training: Training
    share: float
    size: int
    ratio: float
    remedy: Callable[[Any], Any]
    most: int
    collapses: int
    spent: int  # passes of all checks
    _good: dict[str, Any]  # the training's state after the last check without a collapse

    def __init__(
        self,
        training: Training,
        *,
        share: float = 0.03,
        size: int = 64,
        ratio: float = 0.25,
        remedy: Callable[[Any], Any] | None = None,
        most: int = 8,
    ):
        for name, value in (("share", share), ("ratio", ratio)):
            if not 0 < value < 1:
                raise ValueError(f"{name} is {value}; it must lie between 0 and 1.")
        check_count("size", size, at_least=1)
        check_count("most", most, at_least=0)
        attack = training.attack
        if not is_dataclass(attack) or not hasattr(attack, "epsilon"):
            raise TypeError(
                f"the training's attack is a {type(attack).__name__} without an epsilon; the guard "
                f"needs to know how far an attack may go: use a PGD, or a dataclass like NFGSM."
            )
        if remedy is None:
            remembers = training.memory is not None
            is_pgd = isinstance(attack, PGD)
            remedy = one_step_more if is_pgd and not remembers else smaller_step
        self.training = training
        self.share = share
        self.size = size
        self.ratio = ratio
        self.remedy = remedy
        self.most = most
        self.collapses = 0
        self.spent = 0
        self._good = training.state_dict()

    def watch(self, record: Record) -> GuardedRecord:
        """Check the training after this record's iteration, if it is time, and undo a collapse."""
        checked = None
        if self._is_due():
            with deferred_interrupts():
                checked = self._check()
        training = self.training
        values = asdict(record) | {"passes": training.passes, "seconds": training.seconds}
        return GuardedRecord(**values, checked=checked, collapses=self.collapses)

    def _is_due(self) -> bool:
        """Whether a check can be afforded now, with another one at the end."""
        training = self.training
        assert training.batch is not None, "a record comes with its batch"
        cost = JUDGE_PASSES * min(self.size, len(training.batch.labels))
        is_last = training.iteration == training.iterations
        checks = 1 if is_last else 2
        return self.spent + checks * cost <= self.share * training.passes

    def _check(self) -> float:
        """Robust accuracy under PGD-10 of images of the last batch, and what follows from it."""
        training = self.training
        training.refuse_divergence()  # such a state is none to go back to
        batch = training.batch
        assert batch is not None
        start = time.perf_counter()
        right = batch.logits.argmax(1) == batch.labels
        crafted = right[: self.size].double().mean().item()
        images, labels = training.data.train(batch.indices[: self.size].to(training.device))
        with _counted(training.model) as sizes:
            robust = robust_accuracy(training.model, images, labels, self._judge())
        self.spent += sum(sizes)
        training.passes += sum(sizes)
        training.seconds += time.perf_counter() - start
        if not self._is_collapse(crafted, robust, len(labels)):
            self._good = training.state_dict()
        elif self.collapses < self.most:
            self._go_back()
        else:
            warnings.warn(
                f"training has collapsed at iteration {training.iteration}: {crafted:.0%} right on "
                f"what its attack finds, {robust:.0%} under PGD-{JUDGE_STEPS}. It went back "
                f"{self.most} times before and does so no more.",
                stacklevel=3,
            )
        return robust

    def _judge(self) -> PGD:
        attack = self.training.attack
        epsilon = attack.epsilon  # type: ignore[attr-defined]  # as it was checked
        return PGD(epsilon, steps=JUDGE_STEPS, norm=getattr(attack, "norm", "linf"))

    def _is_collapse(self, crafted: float, robust: float, count: int) -> bool:
        # of a difference between two shares of the same images
        standard_error = ((crafted + robust) / count) ** 0.5
        by_chance = STANDARD_ERRORS * standard_error
        return robust < self.ratio * crafted and crafted - robust > by_chance

    def _go_back(self) -> None:
        """To the last good state, with a milder attack; what was spent stays spent."""
        training = self.training
        batch = training.batch  # still that of the record
        spent = {name: getattr(training, name) for name in ("examples", "passes", "seconds")}
        training.load_state_dict(self._good)
        for name, value in spent.items():
            setattr(training, name, value)
        training.batch = batch
        training.attack = self.remedy(training.attack)
        self.collapses += 1


@contextmanager
def _counted(model: nn.Module) -> Iterator[list[int]]:
    """The sizes of the batches that go through a model in a ``with`` block."""
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    try:
        yield sizes
    finally:
        hook.remove()
