"""Protocol 1: case-aware adversarial training, and vanilla adversarial training, as one iterator."""

import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .attacks import PGD
from .data import Data
from .evaluation import accuracy, robust_accuracy
from .gain import information_gain
from .kernels.step import compiled

PRECISIONS = ("auto", "float32", "bfloat16")
PARTS, COUNTERS = (
    ("model", "optimizer", "scheduler", "sampler"),
    ("seed", "iteration", "examples", "passes", "seconds"),
)
Batch = namedtuple(
    "Batch", "indices labels adversarial logits gain"
)  # what an iteration saw, tensors (sampling_number, ...)


@dataclass(frozen=True)
class Record:
    """One iteration. Counts and times are totals since the start of training, evaluation excluded.

    On a GPU, where no iteration waits for the host, loss and coverage are None unless the model was evaluated.
    """

    iteration: int
    examples: int  # adversarial examples drawn
    passes: (
        int  # images sent forward and backward through the model: steps of the attack and updates
    )
    seconds: float  # training time
    loss: float | None  # cross-entropy on the adversarial batch, before the update
    coverage: float | None  # share of the training images drawn at least once
    accuracy: float | None = None
    robust_accuracy: float | None = None


class Training(Iterator[Record]):
    """``for record in Training(model, data, sampler, attack): ...`` runs Protocol 1, one Record an iteration.

    Leave the loop to stop, ask for no record to pause, and ``load_state_dict`` to go on elsewhere: on a CPU the rest is then
    the same, bit for bit. All randomness comes from ``seed`` and the number of the iteration, none from the global state.

    Args:
        model: images in [0, 1] to logits; trained in place, moved to the device.
        data: what to train on.
        sampler: which examples an iteration sees: UniformSampler is vanilla AT, CaseSampler is CAT; or anything that yields
            index batches (B,) and has ``update(indices, gain)``.
        attack: PGD, or any ``attack(model, images, labels) -> images``.
        optimizer: any of torch's, over the model's parameters; None is SGD(lr=0.05, momentum=0.9).
        scheduler: any of torch's, stepped once an iteration.
        iterations: where to stop; None goes on for ever.
        evaluate_every: iterations between evaluations, which also follow the last one; 0 is never.
        evaluation_attack: judges robust accuracy; None is ``attack`` with 20 steps, if that is PGD.
        evaluation_size: the first so many test images are the fixed subset that evaluations use.
        augment: ``augment(images, generator) -> images`` before the attack, e.g. ``crop_and_flip``.
        device: "auto" takes a GPU if there is one.
        precision: "bfloat16" runs attack and update under autocast, "auto" on a GPU only; evaluation is always in float32.
        compile: let torch.compile speed up attack and update; the first iteration then takes a minute.
        progress: show a tqdm bar.
    Raises: ValueError, TypeError: a bad argument. FloatingPointError: a loss not finite; the model is as before that iteration.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        sampler,
        attack: Callable,
        optimizer=None,
        *,
        scheduler=None,
        iterations: int | None = None,
        evaluate_every: int = 0,
        evaluation_attack: Callable | None = None,
        evaluation_size: int = 500,
        augment: Callable | None = None,
        seed: int = 0,
        device: str = "auto",
        precision: str = "auto",
        compile: bool = False,
        progress: bool = False,
    ):
        if precision not in PRECISIONS:
            raise ValueError(
                f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}."
            )
        if not hasattr(sampler, "update"):
            raise TypeError(
                f"sampler is a {type(sampler).__name__} without update(indices, gain); see CaseSampler."
            )
        if getattr(sampler, "n", len(data.y_train)) != len(data.y_train):
            raise ValueError(
                f"the sampler draws from {sampler.n} examples; the data have {len(data.y_train)}."
            )
        self.device = torch.device(
            ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        )
        self.model, self.data, self.sampler, self.attack = (
            model.to(self.device),
            data.to(self.device),
            sampler,
            attack,
        )
        self.optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        self.scheduler, self.iterations, self.evaluate_every, self.augment = (
            scheduler,
            iterations,
            evaluate_every,
            augment,
        )
        if evaluation_attack is None and evaluate_every:
            if not isinstance(attack, PGD):
                raise ValueError(
                    "evaluation_attack is None, and attack is no PGD to take it from; say how to judge robustness."
                )
            evaluation_attack = replace(attack, steps=20, step_size=None)
        self.evaluation_attack, self.evaluation_size = evaluation_attack, evaluation_size
        self._cuda = [self.device] if self.device.type == "cuda" else []
        bfloat16 = precision == "bfloat16" or (precision == "auto" and bool(self._cuda))
        self._autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16)
        self._network = compiled(self.model, self.device) if compile else self.model
        if compile and isinstance(attack, PGD):
            self.attack = replace(attack, compile=not attack.early_stop)
        if compile or self._cuda:
            self.model.to(memory_format=torch.channels_last)
        self._progress, self._bar, self._batches, self._generator = (
            progress,
            None,
            iter(sampler),
            torch.Generator(self.device),
        )
        self.seed, self.iteration, self.examples, self.passes, self.seconds = seed, 0, 0, 0, 0.0
        self.seen = torch.zeros(len(data.y_train), dtype=torch.bool, device=self.device)
        self.batch: Batch | None = None

    def __next__(self) -> Record:
        if self.iterations is not None and self.iteration >= self.iterations:
            if self._bar is not None:
                self._bar.close()
            raise StopIteration
        start, host = time.perf_counter(), self.device.type == "cpu"
        indices, images, labels = self._draw()
        counter = self._network.register_forward_pre_hook(self._count)
        try:
            with torch.random.fork_rng(devices=self._cuda), self._autocast:
                # random numbers of an iteration's own: no state to store (mixed, as a CPU heeds only 32 bits of a seed)
                torch.manual_seed(
                    stream := int(
                        np.random.SeedSequence((self.seed, self.iteration)).generate_state(1)[0]
                    )
                )
                self._generator.manual_seed(stream)
                if self.augment:
                    images = self.augment(images, self._generator)
                adversarial = self._craft(images, labels)
                loss, logits = self._update(adversarial, labels, host)
        finally:
            counter.remove()
        gain = information_gain(logits, labels)
        self.sampler.update(indices, gain.to(indices.device))
        self.batch = Batch(indices, labels, adversarial, logits, gain)
        self.iteration, self.examples = self.iteration + 1, self.examples + len(labels)
        self.seen[indices.to(self.device)] = True
        due = bool(self.evaluate_every) and (
            self.iteration % self.evaluate_every == 0 or self.iteration == self.iterations
        )
        if due and self._cuda:
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - start
        known = (loss.item(), self.seen.double().mean().item()) if host or due else (None, None)
        record = Record(
            self.iteration,
            self.examples,
            self.passes,
            self.seconds,
            *known,
            *(self.evaluate() if due else ()),
        )
        self._show(record)
        return record

    def _draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Protocol 1, line 3."""
        try:
            indices = next(self._batches)
        except StopIteration:  # the sampler's next pass over the data
            indices = next(batches := iter(self.sampler))
            self._batches = batches
        return (indices := torch.as_tensor(indices)), *self.data.train(indices.to(self.device))

    def _craft(self, images: Tensor, labels: Tensor) -> Tensor:
        """Protocol 1, line 4."""
        if isinstance(self.attack, PGD):
            # images and labels come from the data set, which was checked when it was loaded
            if self.attack.compile:  # no hook counts inside a graph
                self.passes += (
                    (self.attack.steps + (self.attack.restarts > 1))
                    * self.attack.restarts
                    * len(images)
                )
            network = self.model if self.attack.compile else self._network
            return self.attack(network, images, labels, generator=self._generator, check=False)
        adversarial = self.attack(self._network, images, labels).detach()
        if adversarial.shape != images.shape:
            raise ValueError(
                f"the attack returned {tuple(adversarial.shape)} for images {tuple(images.shape)}."
            )
        return adversarial

    def _update(self, adversarial: Tensor, labels: Tensor, host: bool) -> tuple[Tensor, Tensor]:
        """Protocol 1, line 5; the logits before the update, of which line 6 takes the gain."""
        self.model.train()
        self.optimizer.zero_grad()
        logits = self._network(adversarial)
        loss = nn.functional.cross_entropy(logits, labels)
        if host and not loss.isfinite():
            raise FloatingPointError(
                f"the loss is {loss.item()} at iteration {self.iteration + 1}: training diverged; "
                f"lower the learning rate. The model is as it was before this iteration."
            )
        loss.backward()
        self.optimizer.step()
        if self.scheduler:
            self.scheduler.step()
        return loss.detach(), logits.detach().to(
            torch.float32, copy=True
        )  # a CUDA graph writes over its output

    def _count(self, _, images: tuple[Tensor]) -> None:
        self.passes += len(images[0])

    def evaluate(self) -> tuple[float, float]:
        """Accuracy and robust accuracy on the fixed subset of the test images."""
        images, labels = self.data.test(slice(self.evaluation_size))
        return accuracy(self.model, images, labels), robust_accuracy(
            self.model, images, labels, self.evaluation_attack
        )

    def _show(self, record: Record) -> None:
        if self._progress:
            self._bar = (
                tqdm(total=self.iterations, initial=record.iteration - 1, unit="it")
                if self._bar is None
                else self._bar
            )
            self._bar.update()
            if record.accuracy is not None:
                self._bar.set_postfix(
                    accuracy=f"{record.accuracy:.1%}", robust=f"{record.robust_accuracy:.1%}"
                )

    def state_dict(self) -> dict:
        """All that a later run needs to go on; plain values and tensors (loads with ``weights_only=True``)."""
        states = {
            name: part.state_dict() for name in PARTS if (part := getattr(self, name)) is not None
        }
        return (
            {"scheduler": None}
            | states
            | {name: getattr(self, name) for name in (*COUNTERS, "seen")}
        )

    def load_state_dict(self, state: dict) -> None:
        """Go on where ``state`` was taken. Build the Training from the same arguments first."""
        if state["seen"].shape != self.seen.shape:
            raise ValueError(
                f"the state is of {len(state['seen'])} training images; the data have {len(self.seen)}."
            )
        for name in PARTS:
            if (part := getattr(self, name)) is not None:
                part.load_state_dict(state[name])
        for name in COUNTERS:
            setattr(self, name, state[name])
        self.seen = state["seen"].to(self.device, copy=True)
        self._batches = iter(self.sampler)
