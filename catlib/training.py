"""Protocol 1: case-aware and vanilla adversarial training, as one iterator."""

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .attacks import PGD, check_adversarial, check_count, check_logits
from .data import Data
from .evaluation import accuracy, robust_accuracy
from .gain import information_gain
from .guards import BufferCopy, check_optimizer, check_sampler, check_weights
from .interrupts import deferred_interrupts
from .kernels.step import compiled

PRECISIONS = ("auto", "float32", "bfloat16")
NO_JUDGE = "evaluation_attack is None; it is required when attack is not a PGD."


class Batch(NamedTuple):
    """What an iteration trained on: B examples (B is the sampling number) of K classes."""

    indices: Tensor  # (B,) int64, into the training images
    labels: Tensor  # (B,)
    adversarial: Tensor  # (B, C, H, W)
    logits: Tensor  # (B, K) float32, on the adversarial examples, before the update
    gain: Tensor  # (B,), Eq. 3 of these logits


@dataclass(frozen=True)
class Record:
    """One iteration. Counts and times are totals since the start of training, without evaluations.

    On a GPU, where no iteration waits for the host, loss and coverage are None unless the model
    was evaluated.
    """

    iteration: int
    examples: int  # adversarial examples drawn
    passes: int  # images sent through the model, in attacks and in updates
    seconds: float  # training time
    loss: float | None  # cross-entropy on the adversarial batch, before the update
    coverage: float | None  # share of the training images drawn at least once
    accuracy: float | None = None
    robust_accuracy: float | None = None


class Training(Iterator[Record]):
    """``for record in Training(model, data, sampler, attack): ...`` runs Protocol 1.

    There is one Record an iteration. To stop, leave the loop. To pause, ask for no further record.
    To go on elsewhere, build the same Training there and give it this one's ``state_dict()`` by
    ``load_state_dict``. On a CPU the iterations that follow are then the same, bit for bit: an
    iteration takes its random numbers from ``seed`` and its own number, and the draws come from
    the sampler's generator. None come from the global random state.

    An error before the update has been made leaves model, optimizer, counters and weights as they
    were, and the next call tries the same batch again. Such an error may come from the
    augmentation, the attack or the model, or from a loss that is not finite. Once the update is
    made, the iteration counts: if the sampler or the scheduler then raises an error, the next call
    returns the Record of this iteration. If ``optimizer.step()`` itself fails half way, parameters
    may have changed although the iteration does not count. Ctrl-C never stops an update half way.

    An evaluation is not part of its iteration. If it is interrupted or raises an error, the next
    call evaluates the model before it trains on. No record is lost.

    Args:
        model: images in [0, 1] to logits; trained in place, moved to the device.
        data: what to train on.
        sampler: which examples an iteration sees: UniformSampler is vanilla AT, CaseSampler is
            CAT; or anything that yields index batches (B,) and has ``update(indices, gain)``.
        attack: PGD, or any ``attack(model, images, labels) -> images``.
        optimizer: any of torch's that steps without a closure, over parameters of the model; None
            is SGD(lr=0.05, momentum=0.9).
        scheduler: any of torch's that steps without a metric; stepped once an iteration.
        iterations: where to stop; None goes on for ever.
        evaluate_every: iterations between evaluations, one of which also follows the last
            iteration; 0 is never.
        evaluation_attack: judges robust accuracy; None is ``attack`` with 20 steps, if it is a PGD.
        evaluation_size: the first so many test images are the fixed subset that evaluations use.
        augment: ``augment(images, generator) -> images`` before the attack, e.g. ``crop_and_flip``.
        seed: of all random numbers but the sampler's draws.
        device: "auto" takes a GPU if there is one.
        precision: "bfloat16" runs attack and update under autocast, "auto" does so on a GPU only;
            evaluation is always in float32.
        compile: let torch.compile speed up attack and update; the first iteration takes a minute.
        progress: show a tqdm bar.

    Raises:
        ValueError, TypeError: a bad argument.
        FloatingPointError: on a CPU, in an iteration: a loss, gradient or information gain that is
            not finite. (A GPU would have to wait for such a check.)
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        sampler: Any,
        attack: Callable[..., Tensor],
        optimizer: torch.optim.Optimizer | None = None,
        *,
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        iterations: int | None = None,
        evaluate_every: int = 0,
        evaluation_attack: Callable[..., Tensor] | None = None,
        evaluation_size: int = 500,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        seed: int = 0,
        device: str | torch.device = "auto",
        precision: str = "auto",
        compile: bool = False,
        progress: bool = False,
    ):
        if precision not in PRECISIONS:
            raise ValueError(
                f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}."
            )
        check_count("seed", seed, at_least=0)
        check_count("evaluate_every", evaluate_every, at_least=0)
        check_count("evaluation_size", evaluation_size, at_least=1)
        if iterations is not None:
            check_count("iterations", iterations, at_least=0)
        check_sampler(sampler, len(data.y_train))
        check_optimizer(optimizer, scheduler, model)
        if evaluation_attack is None and isinstance(attack, PGD):
            # without a step size PGD takes the one that suits its steps
            evaluation_attack = replace(attack, steps=20, step_size=None)
        if evaluation_attack is None and evaluate_every:
            raise ValueError(NO_JUDGE)
        self.device = choose_device(device)
        self.model = model.to(self.device)
        self.data = data.to(self.device)
        self.sampler = sampler  # Protocol 1, line 1: its weights begin at 1
        self.attack = attack
        if optimizer is None:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.augment = augment

        self.iterations = iterations
        self.evaluate_every = evaluate_every
        self.evaluation_attack = evaluation_attack
        self.evaluation_size = evaluation_size

        on_gpu = self.device.type == "cuda"
        self._cuda = [self.device] if on_gpu else []
        bfloat16 = precision == "bfloat16" or (precision == "auto" and on_gpu)
        self._autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16)
        self._network: Any = self.model
        if compile:
            self._network = compiled(self.model, self.device)
            if isinstance(attack, PGD):
                # an attack that stops early changes the size of its batches: no graph fits them
                has_fixed_shapes = not attack.early_stop
                self.attack = replace(attack, compile=has_fixed_shapes)
        if compile or on_gpu:
            self.model.to(memory_format=torch.channels_last)

        self._batches = iter(sampler)
        self._drawn: Tensor | None = None  # indices drawn, and not yet trained on
        self._spent = 0  # passes of the iteration under way
        self._pending: Record | None = None  # of an iteration done, and not yet handed out
        self._buffers = BufferCopy(self.model)
        self._generator = torch.Generator(self.device)
        self._bar = _ProgressBar(iterations) if progress else None

        self.seed = int(seed)
        self.iteration = 0
        self.examples = 0
        self.passes = 0
        self.seconds = 0.0
        self.seen = torch.zeros(len(data.y_train), dtype=torch.bool, device=self.device)
        self.batch: Batch | None = None

    def __next__(self) -> Record:
        """The Record of the next iteration of Protocol 1, evaluated if it is due."""
        if self._pending is None:
            # Protocol 1, line 2: for t = 1 to N
            if self.iterations is not None and self.iteration >= self.iterations:
                if self._bar is not None:
                    self._bar.close()
                raise StopIteration
            with deferred_interrupts():
                self._iterate()
        record = self._pending
        assert record is not None, "an iteration leaves its record pending"
        if self._is_evaluated(record.iteration):
            clean_share, robust_share = self.evaluate()
            record = replace(record, accuracy=clean_share, robust_accuracy=robust_share)
        if self._bar is not None:
            self._bar.show(record)
        # Python handles no signal between these two lines: the record arrives, or stays pending
        self._pending = None
        return record

    def _iterate(self) -> None:
        """One iteration of Protocol 1, its lines numbered as in the paper, without an evaluation.

        It leaves its record pending. An error before the update has been made leaves everything as
        it was; once the update is made, the iteration counts. If ``optimizer.step()`` itself fails
        half way, parameters may have changed.
        """
        start = time.perf_counter()
        on_host = self.device.type == "cpu"
        self._spent = 0
        self._buffers.take()
        counter = self._network.register_forward_pre_hook(self._count)
        try:
            # line 3: sample a batch
            indices, images, labels = self._draw()
            with torch.random.fork_rng(devices=self._cuda), self._autocast:
                stream = self._random_stream()
                torch.manual_seed(stream)
                self._generator.manual_seed(stream)
                if self.augment:
                    images = self.augment(images, self._generator)
                # line 4: craft adversarial examples
                adversarial = self._craft(images, labels)
                # line 5 (and Eq. 3, from the same logits)
                loss, logits, gain = self._update(adversarial, labels, on_host)
        except BaseException as error:
            self._buffers.put_back()
            if isinstance(error, StopIteration):  # it would look like the end of training
                raise RuntimeError("augmentation, attack or model raised StopIteration.") from error
            raise
        finally:
            counter.remove()

        # the update is made: from here on the iteration counts, whatever happens
        self._drawn = None
        self.batch = Batch(indices, labels, adversarial, logits, gain)
        self.iteration += 1
        self.examples += len(labels)
        self.passes += self._spent
        self.seen[indices.to(self.device)] = True
        try:
            # line 6: Eq. 4
            self.sampler.update(indices, gain.to(indices.device))
            if self.scheduler is not None:
                self.scheduler.step()
        finally:
            self._pending = self._record(start, loss)

    def _record(self, start: float, loss: Tensor) -> Record:
        """The record of the iteration that began at this time, by time.perf_counter()."""
        evaluated = self._is_evaluated(self.iteration)
        if evaluated and self._cuda:
            torch.cuda.synchronize(self.device)
        # to ask a GPU in every iteration would slow it down
        known = evaluated or self.device.type == "cpu"
        self.seconds += time.perf_counter() - start
        return Record(
            iteration=self.iteration,
            examples=self.examples,
            passes=self.passes,
            seconds=self.seconds,
            loss=loss.item() if known else None,
            coverage=self.seen.double().mean().item() if known else None,
        )

    def _draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the next batch (B,), its images (B, C, H, W) in [0, 1] and its labels (B,).

        A batch that was drawn for an iteration that failed comes again.
        """
        if self._drawn is None:
            self._drawn = self._next_indices()
        images, labels = self.data.train(self._drawn.to(self.device))
        return self._drawn, images, labels

    def _next_indices(self) -> Tensor:
        indices = next(self._batches, None)
        if indices is None:  # the sampler's next pass over the data
            self._batches = iter(self.sampler)
            indices = next(self._batches, None)
        if indices is None:
            raise ValueError(
                f"the sampler, a {type(self.sampler).__name__}, yields no batch; "
                "each pass over it must yield at least one."
            )
        return torch.as_tensor(indices)

    def _random_stream(self) -> int:
        """The seed of this iteration's random numbers.

        It is derived from ``seed`` and the iteration, so that a checkpoint needs no random state.
        The two are mixed into one number of 32 bits, because a CPU uses only 32 bits of a seed.
        """
        sequence = np.random.SeedSequence((self.seed, self.iteration))
        return int(sequence.generate_state(1)[0])

    def _craft(self, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial versions (B, C, H, W) of the images."""
        attack = self.attack
        if isinstance(attack, PGD):
            network = self._network
            if attack.compile:
                # PGD compiles whole steps of the plain model, and no hook counts inside a graph
                network = self.model
                # with several restarts, one more pass each finds the loss that compares them
                scoring_passes = 1 if attack.restarts > 1 else 0
                passes_a_restart = attack.steps + scoring_passes
                self._spent += passes_a_restart * attack.restarts * len(images)
            # images and labels come from the data set, which was checked when it was loaded
            return attack(network, images, labels, generator=self._generator, check=False)
        adversarial = attack(self._network, images, labels)
        # pixels that are not finite show in the loss
        return check_adversarial(adversarial, images, finite=False)

    def _update(
        self, adversarial: Tensor, labels: Tensor, on_host: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Train on the batch; its loss, logits and information gain, all from before the update."""
        self.model.train()
        self.optimizer.zero_grad()
        logits = check_logits(self._network(adversarial), len(labels))
        loss = nn.functional.cross_entropy(logits, labels)
        # a copy, because a CUDA graph writes over its output
        kept = logits.detach().to(torch.float32, copy=True)
        gain = information_gain(kept, labels)
        if on_host:
            self._refuse("loss", loss)
            self._refuse("information gain", gain)
        loss.backward()
        if on_host:
            self._refuse("norm of the gradient", self._gradient_norms())
        self.optimizer.step()
        return loss.detach(), kept, gain

    def _gradient_norms(self) -> Tensor:
        """The norm of each parameter's gradient."""
        gradients = []
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not parameter.grad.is_sparse:
                    gradients.append(parameter.grad)
        if not gradients:
            return torch.zeros(1)
        return torch.stack(torch._foreach_norm(gradients))

    def _refuse(self, name: str, values: Tensor) -> None:
        """Raise FloatingPointError if one of the values is not finite."""
        finite = values.isfinite()
        if finite.all():
            return
        worst = values[~finite][0].item()
        raise FloatingPointError(
            f"the {name} is {worst} at iteration {self.iteration + 1}: training diverged; "
            "lower the learning rate. The model is as it was before this iteration."
        )

    def _count(self, _: nn.Module, images: tuple[Tensor]) -> None:
        """Before each forward pass: count its images."""
        self._spent += len(images[0])

    def _is_evaluated(self, iteration: int) -> bool:
        """Whether an evaluation follows this iteration."""
        if not self.evaluate_every:
            return False
        return iteration % self.evaluate_every == 0 or iteration == self.iterations

    def evaluate(self) -> tuple[float, float]:
        """Accuracy and robust accuracy on the fixed subset of the test images."""
        if self.evaluation_attack is None:
            raise ValueError(NO_JUDGE)
        images, labels = self.data.test(slice(self.evaluation_size))
        clean_share = accuracy(self.model, images, labels)
        robust_share = robust_accuracy(self.model, images, labels, self.evaluation_attack)
        return clean_share, robust_share

    def state_dict(self) -> dict[str, Any]:
        """All that a later run needs to go on: plain values, and copies of all tensors.

        A file of it loads with ``torch.load(..., weights_only=True)``.

        Raises: TypeError: the sampler has no ``state_dict()``.
        """
        if not hasattr(self.sampler, "state_dict"):
            raise TypeError(
                f"the sampler, a {type(self.sampler).__name__}, has no state_dict() and "
                "load_state_dict(state); without them training cannot be saved."
            )
        state = {
            "made_of": self._made_of(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "sampler": self.sampler.state_dict(),
            "seed": self.seed,
            "iteration": self.iteration,
            "examples": self.examples,
            "passes": self.passes,
            "seconds": self.seconds,
            "seen": self.seen,
            "drawn": self._drawn,
            "pending": None if self._pending is None else asdict(self._pending),
        }
        return copy.deepcopy(state)

    def _made_of(self) -> dict[str, str]:
        """The classes that a state depends on."""
        return {
            "training": type(self).__name__,
            "sampler": type(self.sampler).__name__,
            "optimizer": type(self.optimizer).__name__,
            "scheduler": type(self.scheduler).__name__,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken. Build the Training from the same arguments first.

        Raises: ValueError: the state is of another training; nothing was changed.
        """
        before = self.state_dict()
        self._check_state(state, expected=list(before))
        with deferred_interrupts():
            try:
                self._load(copy.deepcopy(state))
            except Exception as error:
                self._load(before)
                raise ValueError(
                    f"the state does not fit this training, which is unchanged: {error!r}"
                ) from error
            self.batch = None

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.sampler.load_state_dict(state["sampler"])
        self._batches = iter(self.sampler)
        self.iteration = state["iteration"]
        self.examples = state["examples"]
        self.passes = state["passes"]
        self.seconds = state["seconds"]
        self.seen = state["seen"].to(self.device, copy=True)
        self._drawn = state["drawn"]
        self._pending = None if state["pending"] is None else Record(**state["pending"])

    def _check_state(self, state: dict[str, Any], expected: list[str]) -> None:
        """Raise ValueError if the state does not fit this training."""
        missing = [name for name in expected if name not in state]
        if missing:
            raise ValueError(
                f"the state lacks {', '.join(missing)}; it must be what state_dict() of a "
                "Training returned, in this version of catlib."
            )
        for part, ours in self._made_of().items():
            theirs = state["made_of"].get(part)
            if theirs != ours:
                raise ValueError(
                    f"the state is of a training whose {part} is {theirs}; here it is {ours}. "
                    "Build the Training from the same arguments first."
                )
        if state["seen"].shape != self.seen.shape:
            raise ValueError(
                f"the state is of {len(state['seen'])} training images; "
                f"the data have {len(self.seen)}."
            )
        if state["seed"] != self.seed:
            raise ValueError(
                f"the state is of seed {state['seed']}; this training has seed {self.seed}."
            )
        for name in ("iteration", "examples", "passes"):
            check_count(f"the state's {name}", state[name], at_least=0)
        if self.iterations is not None and state["iteration"] > self.iterations:
            raise ValueError(
                f"the state is after iteration {state['iteration']}; "
                f"this training ends at {self.iterations}."
            )
        check_weights(state["model"], self.model)


def choose_device(device: str | torch.device) -> torch.device:
    """The device of this name; "auto" is a CUDA device if there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


class _ProgressBar:
    """A tqdm bar that begins at the first record it is shown."""

    def __init__(self, iterations: int | None):
        self._iterations = iterations
        self._bar: tqdm | None = None

    def show(self, record: Record) -> None:
        if self._bar is None:
            done = record.iteration - 1
            self._bar = tqdm(total=self._iterations, initial=done, unit="it")
        self._bar.update(record.iteration - self._bar.n)
        if record.accuracy is not None:
            self._bar.set_postfix(
                accuracy=f"{record.accuracy:.1%}", robust=f"{record.robust_accuracy:.1%}"
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
