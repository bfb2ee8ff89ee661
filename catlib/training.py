"""Protocol 1: case-aware and vanilla adversarial training, as one iterator."""

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .attacks import PGD, check_adversarial, check_logits
from .checks import check_count, check_evaluations, kind_of
from .data import SUBSETS, Data, subset
from .data.augmentation import MovingAugmentation
from .evaluation import accuracy, recalibrated, robust_accuracy
from .gain import information_gain
from .guards import (
    BufferCopy,
    check_augmented,
    check_budget,
    check_loss,
    check_memory,
    check_optimizer,
    check_sampler,
    check_weights,
)
from .interrupts import deferred_interrupts
from .kernels.gpu import tuned_convolutions
from .kernels.step import compiled
from .memory import PerturbationMemory, Recall
from .ranks import find_ranks, own_gpu

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
    was evaluated or training ends with this iteration.
    """

    iteration: int
    examples: int  # adversarial examples drawn
    passes: int  # images sent through the model, in attacks and in updates
    seconds: float  # training time
    loss: float | None  # what the update minimises, such as cross-entropy, before the update
    coverage: float | None  # share of the training images drawn at least once
    accuracy: float | None = None
    robust_accuracy: float | None = None


def adversarial_cross_entropy(
    model: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Eq. 1, the usual loss of adversarial training: the mean cross-entropy.

    Another ``loss`` of :class:`Training` has the same form.

    Args:
        model: images (B, C, H, W) to logits (B, K); in training mode.
        images: (B, C, H, W) in [0, 1], as they were before the attack; not needed for this loss.
        adversarial: (B, C, H, W), what the attack made of them.
        labels: (B,), integers in 0..K-1.

    Returns: the loss, a scalar with a gradient, and the logits (B, K) of the adversarial images.
    """
    logits = check_logits(model(adversarial), len(labels))
    return nn.functional.cross_entropy(logits, labels), logits


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

    Where ``torch.distributed`` is initialised, as under ``torchrun``, its processes train one model
    together: see ``ranks`` and docs/ranks.md.

    Args:
        model: images in [0, 1] to logits; trained in place, moved to the device. A part of it that
            is in eval mode while the whole is in training mode, such as a frozen batch norm, is
            left in eval mode.
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
        evaluate_first: evaluate after each of the first so many iterations as well, where a level
            may be crossed within a few; needs an ``evaluate_every``.
        evaluation_attack: judges robust accuracy; None is ``attack`` with 20 steps, if it is a PGD.
        evaluation_size: how many test images are the fixed subset that evaluations use.
        evaluation_subset: "first", the first so many; or "spread", evenly over the classes and over
            the test set (:func:`catlib.data.subset`).
        recalibrate: evaluate a copy of the model whose batch norms have the statistics of so many
            clean training images, spread over the set (:func:`catlib.recalibrated`); 0 evaluates
            the model itself. Like all of an evaluation, it counts neither as passes nor as time.
        augment: ``augment(images, generator) -> images`` before the attack, e.g. ``crop_and_flip``.
        loss: what an update minimises, a function of the form of
            :func:`adversarial_cross_entropy`, the default. TRADES, for example, compares the
            logits of both versions of an image. Every image that it sends through the model
            counts as a pass, and Eq. 3 is taken from the adversarial logits that it returns.
        memory: where the attack on an image begins at what the last attack on it found; what this
            one finds is stored there. It needs a PGD, and an ``augment`` that can be undone, such
            as ``CropAndFlip()``. It is moved to the device.
        budget: ``budget(weights) -> steps``: how many steps of a PGD each example of a batch gets,
            (B,) integers, by its weight (B,) in the sampler, e.g. ``steps_near_boundary`` of
            catlib.readings. None gives all of them ``attack.steps``.
        seed: of all random numbers but the sampler's draws.
        device: "auto" takes a GPU if there is one.
        precision: "bfloat16" runs attack and update under autocast, "auto" does so on a GPU only.
            Evaluations are in float32; on a GPU the steps of their PGD are in the same precision as
            training, the verdicts are not. A processor without AVX-512 emulates bfloat16, which
            takes many times as long as float32; a warning says so.
        compile: let torch.compile speed up attack and update; the first iteration takes a minute.
            On a GPU evaluations are compiled, too.
        progress: show a tqdm bar.
        ranks: "auto" trains together with all processes of torch.distributed if it is initialised,
            each with its share of every batch; "alone" trains in this process alone. Records,
            states and ``batch`` are those of the whole batch, and the same on all ranks, but for
            the seconds; rank 0 alone shows progress. A model in DistributedDataParallel is taken
            out of it for everything but the update.

    Raises:
        ValueError, TypeError: a bad argument.
        RuntimeError: in an iteration: another rank failed, with its message. The model is as before
            the iteration.
        FloatingPointError: in an iteration: a loss, gradient or information gain that is not
            finite. A CPU refuses it before the update. A GPU, which would have to be waited for,
            is asked at the next evaluation and after the last iteration; the message names the
            iteration, the model was trained on, and every further call raises the same error.
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
        evaluate_first: int = 0,
        evaluation_attack: Callable[..., Tensor] | None = None,
        evaluation_size: int = 500,
        evaluation_subset: str = "first",
        recalibrate: int = 0,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        loss: Callable[..., tuple[Tensor, Tensor]] = adversarial_cross_entropy,
        memory: PerturbationMemory | None = None,
        budget: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
        device: str | torch.device = "auto",
        precision: str = "auto",
        compile: bool = False,
        progress: bool = False,
        ranks: str = "auto",
    ):
        if precision not in PRECISIONS:
            raise ValueError(
                f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}."
            )
        check_count("seed", seed, at_least=0)
        check_evaluations(evaluate_every, evaluate_first)
        check_count("evaluation_size", evaluation_size, at_least=1)
        check_count("recalibrate", recalibrate, at_least=0)
        if evaluation_subset not in SUBSETS:
            raise ValueError(
                f"evaluation_subset is {evaluation_subset!r}; "
                f"it must be one of {', '.join(SUBSETS)}."
            )
        if iterations is not None:
            check_count("iterations", iterations, at_least=0)
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"model is a {type(model).__name__}; it must be a torch.nn.Module, with parameters "
                "to train."
            )
        check_sampler(sampler, data.y_train)
        check_optimizer(optimizer, scheduler, model)
        if memory is not None:
            check_memory(memory, data.x_train, attack, augment)
        if budget is not None:
            check_budget(sampler, attack, compile)
        if evaluation_attack is None and isinstance(attack, PGD):
            # without a step size PGD takes the one that suits its steps
            evaluation_attack = replace(attack, steps=20, step_size=None)
        if evaluation_attack is None and evaluate_every:
            raise ValueError(NO_JUDGE)
        wrapper = model if isinstance(model, DistributedDataParallel) else None
        if wrapper is not None:
            if compile:
                raise ValueError(
                    "compile is True, and the model is in DistributedDataParallel already; give "
                    "the model itself: Training wraps it."
                )
            model = wrapper.module
        self.ranks = find_ranks(ranks)
        self.device = choose_device(device)
        self.model = model.to(self.device)
        self._frozen = [part for part in model.modules() if model.training and not part.training]
        self.data = data.to(self.device)
        self.sampler = sampler  # Protocol 1, line 1: its weights begin at 1
        self.attack = attack
        if optimizer is None:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.augment = augment
        self.loss = loss
        self.memory = None if memory is None else memory.to(self.device)
        self.budget = budget

        self.iterations = iterations
        self.evaluate_every = evaluate_every
        self.evaluate_first = evaluate_first
        self.evaluation_attack = evaluation_attack
        self.evaluation_size = evaluation_size
        self.evaluation_subset = evaluation_subset
        self.recalibrate = recalibrate

        on_gpu = self.device.type == "cuda"
        self._cuda = [self.device] if on_gpu else []
        bfloat16 = precision == "bfloat16" or (precision == "auto" and on_gpu)
        if bfloat16 and self.device.type == "cpu":
            _warn_if_bfloat16_is_emulated()
        self.tunes_convolutions = True  # on a GPU, in training: cuDNN tries its algorithms
        self._autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16)
        # on a CPU evaluations are always in float32, and their batches of many sizes not compiled
        self._judged_in = "bfloat16" if on_gpu and bfloat16 else "float32"
        self._judged_compiled = on_gpu and compile
        self._network: Any = self.model
        if compile:
            self._network = compiled(self.model, self.device)
            if isinstance(attack, PGD):
                # an attack that stops early changes the size of its batches: no graph fits them
                has_fixed_shapes = not attack.early_stop
                self.attack = replace(attack, compile=has_fixed_shapes)
        if compile or on_gpu:
            self.model.to(memory_format=torch.channels_last)
        with self.ranks.agreed() as facts:
            facts["seed"] = seed
            facts["iterations"] = iterations
            facts["evaluate_every"] = evaluate_every
            facts["evaluation_size"] = evaluation_size
            facts["training labels"] = data.y_train
        # the network of the update; attacks use the one inside, as torch.autograd.grad does not go
        # through DistributedDataParallel
        self._trained = self.ranks.wrap(self._network, wrapper)

        self._batches = iter(sampler)
        self._drawn: Tensor | None = None  # indices drawn, and not yet trained on
        self._spent = 0  # passes of the iteration under way
        self._pending: Record | None = None  # of an iteration done, and not yet handed out
        self._buffers = BufferCopy(self.model)
        self._generator = torch.Generator(self.device)
        self._bar = _ProgressBar(iterations) if progress and self.ranks.is_first else None

        self.seed = int(seed)
        self.iteration = 0
        self.examples = 0
        self.passes = 0
        self.seconds = 0.0
        self.seen = torch.zeros(len(data.y_train), dtype=torch.bool, device=self.device)
        self.batch: Batch | None = None
        # on a GPU: the first iteration with a number that is not finite; 0 is none
        self._diverged = torch.zeros((), dtype=torch.int64, device=self.device)

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
        if self._is_known(record.iteration):
            self.refuse_divergence()
        if self._is_evaluated(record.iteration):
            # by every rank on all images: the numbers are those of one process
            with self.ranks.agreed():
                clean_share, robust_share = self.evaluate()
            record = replace(record, accuracy=clean_share, robust_accuracy=robust_share)
        if self._bar is not None:
            self._bar.show(record)
        # Python handles no signal between these two lines: the record arrives, or stays pending
        self._pending = None
        return record

    @property
    def next_iteration(self) -> int:
        """That of the next record: the next one, or the last if its record was not handed out."""
        return self.iteration + 1 if self._pending is None else self.iteration

    def _iterate(self) -> None:
        """One iteration of Protocol 1, its lines numbered as in the paper, without an evaluation.

        It leaves its record pending. An error before the update has been made leaves everything as
        it was; once the update is made, the iteration counts. If ``optimizer.step()`` itself fails
        half way, parameters may have changed.
        """
        start = time.perf_counter()
        self._spent = 0
        self._buffers.take()
        counter = self._network.register_forward_pre_hook(self._count)
        try:
            # line 3: sample a batch
            with self.ranks.agreed() as facts:
                indices, images, labels = self._draw()
                facts["iteration"] = self.iteration
                facts["draw"] = indices
            with (
                torch.random.fork_rng(devices=self._cuda),
                self._autocast,
                tuned_convolutions(self.device, self.tunes_convolutions),
            ):
                # global random numbers are for this rank's share, the generator's for the batch
                torch.manual_seed(self._random_stream(self.ranks.rank))
                self._generator.manual_seed(self._random_stream())
                with self.ranks.agreed():
                    images, recall = self._augment_and_recall(indices, images)
                    # line 4: craft adversarial examples, those of this rank's share
                    steps = self._steps_each(indices)
                    adversarial = self._craft(images, labels, recall, steps)
                whole_batch = self.ranks.gather(adversarial, len(labels))
                # line 5 (and Eq. 3, from the same logits)
                loss, logits, gain = self._update(images, adversarial, labels)
        except BaseException as error:
            self._buffers.put_back()
            if isinstance(error, StopIteration):  # it would look like the end of training
                raise RuntimeError("augmentation, attack or model raised StopIteration.") from error
            raise
        finally:
            counter.remove()

        # the update is made: from here on the iteration counts, whatever happens
        self._drawn = None
        self.batch = Batch(indices, labels, whole_batch, logits, gain)
        self.iteration += 1
        self.examples += len(labels)
        self.passes += self._spent
        self.seen[indices.to(self.device)] = True
        try:
            if recall is not None:
                recall.store(whole_batch - images)
            # line 6: Eq. 4
            self.sampler.update(indices, gain.to(indices.device))
            if self.scheduler is not None:
                self.scheduler.step()
        finally:
            self._pending = self._record(start, loss)

    def _record(self, start: float, loss: Tensor) -> Record:
        """The record of the iteration that began at this time, by time.perf_counter()."""
        known = self._is_known(self.iteration)
        if known and self._cuda:
            torch.cuda.synchronize(self.device)
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

    def _random_stream(self, rank: int = 0) -> int:
        """The seed of this iteration's random numbers, or of those that a rank alone uses.

        It is derived from ``seed`` and the iteration, so that a checkpoint needs no random state.
        The two are mixed into one number of 32 bits, because a CPU uses only 32 bits of a seed.
        """
        origin = (self.seed, self.iteration, rank) if rank else (self.seed, self.iteration)
        sequence = np.random.SeedSequence(origin)
        return int(sequence.generate_state(1)[0])

    def _augment_and_recall(self, indices: Tensor, images: Tensor) -> tuple[Tensor, Recall | None]:
        """The images (B, C, H, W) augmented, and what is remembered of them, moved likewise."""
        if self.memory is None:
            if self.augment is not None:
                images = self._checked(self.augment(images, self._generator), images)
            return images, None
        if self.augment is None:
            return images, self.memory.recall(indices)
        assert isinstance(self.augment, MovingAugmentation)  # as it was checked
        moves = self.augment.draw(images, self._generator)
        if not hasattr(moves, "inverse"):
            raise TypeError(
                f"augment.draw returned {kind_of(moves)} without inverse(); a memory needs moves "
                "that can be undone, like those of CropAndFlip."
            )
        return self._checked(moves(images), images), self.memory.recall(indices, moves)

    def _checked(self, augmented: Any, images: Tensor) -> Tensor:
        """What the augmentation made of the images, if it can be attacked.

        On a GPU, where a look at the pixels waits for the device, they are looked at once.
        """
        check_augmented(augmented, images, look=self.device.type == "cpu" or self.iteration == 0)
        return augmented

    def _steps_each(self, indices: Tensor) -> Tensor | None:
        """The steps of the attack on each example of the batch (B,), if there is a budget."""
        if self.budget is None:
            return None
        check_budget(self.sampler, self.attack, compile=False)
        weights = self.sampler.weights[indices]
        return torch.as_tensor(self.budget(weights), device=self.device)

    def _craft(
        self,
        images: Tensor,
        labels: Tensor,
        recall: Recall | None = None,
        steps: Tensor | None = None,
    ) -> Tensor:
        """Adversarial versions (b, C, H, W) of this rank's share of the images (B, C, H, W).

        A PGD begins at what is remembered of them, and gives each image its own ``steps``.
        """
        share = self.ranks.share(len(labels))
        attack = self.attack
        start = None
        if recall is not None:
            start = recall.start(images, attack, self._generator)
        if isinstance(attack, PGD):
            network = self._network
            if attack.compile:
                # PGD compiles whole steps of the plain model, and no hook counts inside a graph
                network = self.model
                # with several restarts, one more pass each finds the loss that compares them
                scoring_passes = 1 if attack.restarts > 1 else 0
                passes_a_restart = attack.steps + scoring_passes
                self._spent += passes_a_restart * attack.restarts * len(images[share])
            # Images and labels come from the data set, which was checked when it was loaded. The
            # first batch tells whether the model and the augmentation fit to it.
            return attack(
                network,
                images,
                labels,
                start=start,
                steps=steps,
                generator=self._generator,
                check=self.iteration == 0 and not attack.compile,
                share=share,
            )
        images = images[share]
        adversarial = attack(self._network, images, labels[share])
        # pixels that are not finite show in the loss
        return check_adversarial(adversarial, images, finite=False)

    def _update(
        self, images: Tensor, adversarial: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Train on the batch; its loss, logits and information gain, all from before the update.

        Args:
            images: (B, C, H, W), of the batch, augmented.
            adversarial: (b, C, H, W), of this rank's share of the batch.
            labels: (B,), of the batch.
        """
        n = len(labels)
        share = self.ranks.share(n)
        with self.ranks.agreed():
            self.model.train()
            for module in self._frozen:
                module.train(False)
            self.optimizer.zero_grad()
            result = self._loss_of(images[share], adversarial, labels[share])
            loss, logits = check_loss(result, len(adversarial), len(self.data.classes))
            loss = self.ranks.weighed(loss, n)
            # a copy, because a CUDA graph writes over its output
            own_logits = logits.detach().to(torch.float32, copy=True)
        self._spent = self.ranks.total(self._spent)
        kept = self.ranks.gather(own_logits, n)
        gain = information_gain(kept, labels)
        batch_loss = self.ranks.mean(loss.detach())
        self._refuse("loss", batch_loss)
        self._refuse("information gain", gain)
        with self.ranks.in_step():
            loss.backward()
            self.ranks.share_buffers(self.model)
        self._refuse("norm of the gradient", self._gradient_norms())
        with self.ranks.in_step():
            self.optimizer.step()
        return batch_loss, kept, gain

    def _loss_of(self, images: Tensor, adversarial: Tensor, labels: Tensor) -> Any:
        """What the loss returns. An error in it is raised with a note about how it is called."""
        try:
            return self.loss(self._trained, images, adversarial, labels)
        except Exception as error:
            if self.loss is not adversarial_cross_entropy:
                error.add_note(
                    "The loss is called as loss(model, images, adversarial, labels) and returns "
                    "(loss, adversarial_logits); see catlib.training.adversarial_cross_entropy."
                )
            raise

    def _gradient_norms(self) -> Tensor:
        """The norm of each parameter's gradient."""
        gradients = []
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not parameter.grad.is_sparse:
                    gradients.append(parameter.grad)
        if not gradients:
            return torch.zeros(1, device=self.device)
        return torch.stack(torch._foreach_norm(gradients))

    def _refuse(self, name: str, values: Tensor) -> None:
        """Raise FloatingPointError if one of the values is not finite.

        On a GPU, which is not waited for, this is only noted for :meth:`refuse_divergence`.
        """
        finite = values.isfinite()
        if self.device.type != "cpu":
            is_first = ~finite.all() & (self._diverged == 0)
            self._diverged.masked_fill_(is_first, self.iteration + 1)
            return
        if finite.all():
            return
        worst = values[~finite][0].item()
        raise FloatingPointError(
            f"the {name} is {worst} at iteration {self.iteration + 1}: training diverged; "
            "lower the learning rate. The model is as it was before this iteration."
        )

    def diverged_at(self) -> int:
        """The first iteration whose loss, information gain or gradient was not finite; 0: none.

        On a CPU it is always 0, as such an iteration is refused. A GPU has to be waited for.
        """
        return int(self._diverged)

    def refuse_divergence(self) -> None:
        """Raise FloatingPointError if training on a GPU has diverged, and nobody has said so."""
        iteration = self.diverged_at()
        if not iteration:
            return
        raise FloatingPointError(
            f"the loss, an information gain or a gradient is not finite at iteration {iteration}: "
            "training diverged; lower the learning rate. A GPU is asked at evaluations and at the "
            f"end only, so the model was trained to iteration {self.iteration} and is spoilt; go "
            "back to an earlier state, or begin anew."
        )

    def _count(self, _: nn.Module, images: tuple[Tensor]) -> None:
        """Before each forward pass: count its images."""
        self._spent += len(images[0])

    def _is_evaluated(self, iteration: int) -> bool:
        """Whether an evaluation follows this iteration."""
        if not self.evaluate_every:
            return False
        if iteration <= self.evaluate_first:
            return True
        return iteration % self.evaluate_every == 0 or iteration == self.iterations

    def _is_known(self, iteration: int) -> bool:
        """Whether the host asks for numbers of this iteration, for which a GPU is waited for."""
        if self.device.type == "cpu":
            return True
        return self._is_evaluated(iteration) or iteration == self.iterations

    def evaluate(self) -> tuple[float, float]:
        """Accuracy and robust accuracy on the fixed subset of the test images."""
        if self.evaluation_attack is None:
            raise ValueError(NO_JUDGE)
        self.refuse_divergence()
        model = self.judged_model()
        images, labels = self.test_images(self.evaluation_size)
        clean_share = accuracy(model, images, labels)
        robust_share = self.judge(model, images, labels, self.evaluation_attack)
        return clean_share, robust_share

    def judge(
        self, model: nn.Module, images: Tensor, labels: Tensor, attack: Callable[..., Tensor]
    ) -> float:
        """Robust accuracy with the precision of this training's evaluations.

        Args:
            model: what :meth:`judged_model` returned.
            images: (n, C, H, W) in [0, 1].
            labels: (n,), integers in 0..K-1.
            attack: as of :func:`robust_accuracy`.
        """
        return robust_accuracy(
            model,
            images,
            labels,
            attack,
            precision=self._judged_in,
            compile=self._judged_compiled,
        )

    def judged_model(self) -> nn.Module:
        """What an evaluation judges: the model itself, or its copy if ``recalibrate`` is not 0."""
        if not self.recalibrate:
            return self.model
        images, _ = self.data.train(subset(self.data.y_train, self.recalibrate, "spread"))
        return recalibrated(self.model, images)

    def test_images(self, count: int | None) -> tuple[Tensor, Tensor]:
        """So many test images and their labels, chosen by ``evaluation_subset``; None is all."""
        return self.data.test(subset(self.data.y_test, count, self.evaluation_subset))

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
        if self.memory is not None:
            state["memory"] = self.memory.state_dict()
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

        What the state has wins: weights, optimizer (with its learning rate), scheduler, sampler
        (with alpha and temperature), memory and counters. What it has not is taken as it was given
        to this Training: attack, loss, augmentation, budget, ``log_weight``, evaluations.

        Raises: ValueError: the state is of another training, as the seed, the kind of the optimizer
            or of the sampler, n, ``sampling_number`` or the memory tell; nothing was changed.
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
        if self.memory is not None:
            self.memory.load_state_dict(state["memory"])
        self.iteration = state["iteration"]
        self.examples = state["examples"]
        self.passes = state["passes"]
        self.seconds = state["seconds"]
        self.seen = state["seen"].to(self.device, copy=True)
        self._diverged.zero_()
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
        if "memory" in state and self.memory is None:
            raise ValueError(
                "the state is of a training with a memory of perturbations; this one has none. "
                "Build the Training from the same arguments first."
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
    """The device of this name; "auto" is this process's CUDA device if there is one, else the CPU.

    Under torchrun each process of a machine has a GPU of its own.

    Raises: ValueError: no device has this name, or there is no GPU here.
    """
    if device == "auto":
        return own_gpu() if torch.cuda.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device is {device!r}; it must be 'auto', 'cpu', 'cuda', or another that torch has, "
            "such as 'cuda:1'."
        ) from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device is {str(device)!r}, and torch finds no GPU here; use 'cpu' or 'auto'."
        )
    return chosen


def _warn_if_bfloat16_is_emulated() -> None:
    """Warn where oneDNN has no bfloat16 convolutions: on a processor with AVX2, not AVX-512."""
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        warnings.warn(
            "this processor has no AVX-512, so that bfloat16 is emulated: a ResNet takes about 12 "
            'times as long as in float32. Train with precision="float32", or on another machine.',
            RuntimeWarning,
            stacklevel=3,
        )


class _ProgressBar:
    """A tqdm bar that begins at the first record it is shown."""

    def __init__(self, iterations: int | None):
        self._iterations = iterations
        self._bar: Any = None

    def show(self, record: Record) -> None:
        if self._bar is None:
            from tqdm.auto import tqdm

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
