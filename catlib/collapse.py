"""A guard against catastrophic overfitting, for every training whose attack has few steps.

In catastrophic overfitting (Wong, Rice and Kolter, ICLR 2020) a model learns within a few
iterations to be right on what its own attack finds, and loses its robustness: PGD with more steps
then breaks nearly every image. ``for record in guarded(training): ...`` looks for that from time to
time, and undoes it.
"""

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any

from torch import Tensor, nn

from .attacks import PGD
from .checks import check_count
from .evaluation import robust_accuracy
from .interrupts import deferred_interrupts
from .training import Record, Training

ARGUMENTS = ("share", "size", "ratio", "most")
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
    yield from Guard(training, **options).records()


@dataclass(frozen=True)
class _Sample:
    """The images of the last batch that a check looks at.

    A training that goes on from a state has no batch, and what was drawn last may wait for a check.
    """

    indices: Tensor  # (m,) int64, into the training images
    crafted: float  # the share that was right on what the training's attack had found


class Guard:
    """Looks for a collapse of a training, goes back to the last good state, and changes the attack.

    ``guard = Guard(training)``, then after every iteration ``record = guard.watch(record)``;
    :meth:`records` is that loop. Whenever enough passes have been made to afford it, and at the
    end, it attacks some images of the last batch with PGD-10. The training has collapsed if the
    model is right far more often on what its own attack has found of them. Then it returns to the
    state that it had at the last check without a collapse, at first to the one in which the guard
    was built, and goes on with a milder attack. One copy of the training's state is kept.

    To go on elsewhere, build the same Training and Guard there, and give each what ``state_dict()``
    of the old one returned; the Training first. Ctrl-C or an error in the middle of a check leaves
    all as it was before the check, which is made again with the next record.

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
    _first: Any  # the training's attack before any collapse
    _good: dict[str, Any]  # the training's state after the last check without a collapse
    _sample: _Sample | None  # of a state that was loaded
    _waiting: Record | None  # handed out by the training, and its check not finished

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
        self._first = attack
        self._good = training.state_dict()
        self._sample = None
        self._waiting = None

    def records(self) -> Iterator[GuardedRecord]:
        """The training's records, each after its check."""
        while (record := self.next_record()) is not None:
            yield record

    def next_record(self) -> GuardedRecord | None:
        """The training's next record after its check; None at the end.

        A record whose check was interrupted comes first.
        """
        record = self._waiting
        if record is None:
            record = next(self.training, None)
        return None if record is None else self.watch(record)

    def watch(self, record: Record) -> GuardedRecord:
        """Check the training after this record's iteration, if it is time, and undo a collapse."""
        self._waiting = record
        with deferred_interrupts():
            # a record that waited may have its check behind it
            seen = record if isinstance(record, GuardedRecord) else self._seen(record)
            self._waiting = seen
        self._sample = None
        # Python handles no signal between these two lines: the record arrives, or waits
        self._waiting = None
        return seen

    def _seen(self, record: Record) -> GuardedRecord:
        """The record with what the guard did after it."""
        checked = self._check() if self._is_due() else None
        training = self.training
        values = asdict(record) | {"passes": training.passes, "seconds": training.seconds}
        return GuardedRecord(**values, checked=checked, collapses=self.collapses)

    @property
    def next_iteration(self) -> int:
        """That of the next record: the training's next, or one whose check was interrupted."""
        if self._waiting is not None:
            return self._waiting.iteration
        return self.training.next_iteration

    def milder(self, attack: Any) -> Any:
        """What an attack has become after as many remedies as there were collapses so far."""
        for _ in range(self.collapses):
            attack = self.remedy(attack)
        return attack

    def state_dict(self) -> dict[str, Any]:
        """A snapshot: what a guard of the same training needs to go on, the good state included.

        A file of it loads with ``torch.load(..., weights_only=True)``.
        """
        sample = self._last_sample()
        state = {
            **{name: getattr(self, name) for name in ARGUMENTS},
            "collapses": self.collapses,
            "spent": self.spent,
            "good": self._good,
            "sample": None if sample is None else asdict(sample),
            "waiting": None if self._waiting is None else asdict(self._waiting),
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken. The training gets the attack that it had then.

        Raises: ValueError: the state of another guard, or a damaged one; nothing was changed.
            FloatingPointError: the training has diverged; load its own state first.
        """
        self.training.refuse_divergence()  # load the training's own state first
        self._check_state(state)
        state = copy.deepcopy(state)
        with deferred_interrupts():
            self.collapses = state["collapses"]
            self.spent = state["spent"]
            self._good = state["good"]
            self._sample = None if state["sample"] is None else _Sample(**state["sample"])
            self._waiting = None if state["waiting"] is None else _record_of(state["waiting"])
            self.training.attack = self.milder(self._first)

    def _check_state(self, state: dict[str, Any]) -> None:
        """Raise ValueError if the state does not fit this guard and its training."""
        needed = (*ARGUMENTS, "collapses", "spent", "good", "sample", "waiting")
        missing = [name for name in needed if name not in state]
        if missing:
            raise ValueError(
                f"the guard's state lacks {', '.join(missing)}; it must be what state_dict() of a "
                "Guard returned, in this version of catlib."
            )
        for name in ARGUMENTS:
            own = getattr(self, name)
            if state[name] != own:
                raise ValueError(
                    f"the state is of a guard with {name} {state[name]!r}; this one has {own!r}. "
                    "Build the Guard with the same arguments first."
                )
        for name in ("collapses", "spent"):
            check_count(f"the guard's {name}", state[name], at_least=0)
        if state["collapses"] > self.most:
            raise ValueError(
                f"the guard's state has {state['collapses']} collapses; this guard goes back at "
                f"most {self.most} times."
            )
        try:
            if state["sample"] is not None:
                self.training.data.train(_Sample(**state["sample"]).indices)
            if state["waiting"] is not None:
                _record_of(state["waiting"])
            self._try_on(state["good"])
        except Exception as error:  # a damaged state can raise nearly anything
            raise ValueError(
                f"the guard's state does not fit this training, which is unchanged: {error}"
            ) from error

    def _try_on(self, good: dict[str, Any]) -> None:
        """Raise an error if the training cannot go back to this state; it stays where it is."""
        training = self.training
        batch = training.batch
        before = training.state_dict()
        with deferred_interrupts():
            try:
                training.load_state_dict(good)
                training.load_state_dict(before)
            finally:
                training.batch = batch

    def _last_sample(self) -> _Sample | None:
        """Of the last batch; None before the first."""
        batch = self.training.batch
        if batch is None:
            return self._sample
        right = batch.logits.argmax(1) == batch.labels
        crafted = right[: self.size].double().mean().item()
        return _Sample(batch.indices[: self.size], crafted)

    def _is_due(self) -> bool:
        """Whether a check can be afforded now, with another one at the end."""
        training = self.training
        cost = JUDGE_PASSES * self._images_of_a_check()
        is_last = training.iteration == training.iterations
        checks = 1 if is_last else 2
        return self.spent + checks * cost <= self.share * training.passes

    def _images_of_a_check(self) -> int:
        batch = self.training.batch
        if batch is not None:
            return min(self.size, len(batch.labels))
        assert self._sample is not None, "a record comes with its batch, or with its sample"
        return len(self._sample.indices)

    def _check(self) -> float:
        """Robust accuracy under PGD-10 of images of the last batch, and what follows from it."""
        training = self.training
        training.refuse_divergence()  # such a state is none to go back to
        sample = self._last_sample()
        assert sample is not None
        crafted = sample.crafted
        start = time.perf_counter()
        images, labels = training.data.train(sample.indices.to(training.device))
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


def _record_of(values: dict[str, Any]) -> Record:
    """A record of these values, which has been checked if they say so."""
    kind = GuardedRecord if "checked" in values else Record
    return kind(**values)


@contextmanager
def _counted(model: nn.Module) -> Iterator[list[int]]:
    """The sizes of the batches that go through a model in a ``with`` block."""
    sizes: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    try:
        yield sizes
    finally:
        hook.remove()
