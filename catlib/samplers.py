"""The practical tricks: which examples an iteration sees (paper, section 2.2)."""

from collections.abc import Callable, Iterator
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from .gain import smooth

TREE_FROM = 4096  # examples from which the compiled tree draws faster than one sort of all


class _BatchSampler(Sampler):
    """What both share: ``draw()`` gives a batch of different indices (sampling_number,) int64; iterating, one pass's worth."""

    def __init__(self, labels: Tensor, sampling_number: int, seed: int):
        labels = torch.as_tensor(labels)
        if (
            labels.ndim != 1
            or len(labels) == 0
            or labels.dtype.is_floating_point
            or labels.dtype == torch.bool
        ):
            raise ValueError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}; they must be (n,) integers, n > 0."
            )
        if labels.min() < 0:
            raise ValueError(f"a label is {labels.min()}; labels must lie in 0..K-1.")
        if not isinstance(sampling_number, Integral) or not 1 <= sampling_number <= len(labels):
            raise ValueError(
                f"sampling_number is {sampling_number!r}; it must be an integer in 1..{len(labels)} (all examples)."
            )
        self.n, self.sampling_number, self.device = len(labels), sampling_number, labels.device
        self.generator = torch.Generator(labels.device).manual_seed(seed)

    def __len__(self) -> int:
        return max(1, self.n // self.sampling_number)

    def __iter__(self) -> Iterator[Tensor]:
        return (self.draw() for _ in range(len(self)))

    def state_dict(self) -> dict:
        return {
            "n": self.n,
            "sampling_number": self.sampling_number,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict) -> None:
        for name in ("n", "sampling_number"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the state is of a sampler with {name} {state[name]}; this one has {getattr(self, name)}."
                )
        self.generator.set_state(state["generator"].cpu())


class UniformSampler(_BatchSampler):
    """Vanilla AT: a fresh shuffle a pass, cut into batches of ``sampling_number``; what is left over at its end is dropped.

    Of the ``labels`` (n,), integers, only number and device matter; ``seed`` is of the shuffles.
    """

    def __init__(self, labels: Tensor, sampling_number: int = 128, *, seed: int = 0):
        super().__init__(labels, sampling_number, seed)
        self._order, self._next = torch.arange(0), 0

    def draw(self) -> Tensor:
        if self._next + self.sampling_number > len(self._order):
            self._order, self._next = (
                torch.randperm(self.n, generator=self.generator, device=self.device),
                0,
            )
        self._next += self.sampling_number
        return self._order[self._next - self.sampling_number : self._next]

    def update(self, indices: Tensor, gain: Tensor) -> None:
        """Nothing to learn: every example counts the same."""

    def state_dict(self) -> dict:
        return super().state_dict() | {"order": self._order, "next": self._next}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._order, self._next = state["order"].to(self.device), state["next"]


class CaseSampler(_BatchSampler):
    r"""CAT: draw by information gain, without replacement, balanced over classes.

    The next example of a class is drawn in proportion to exp(w / temperature) among those of the class not yet in the batch
    (Gumbel-top-k draws them at once): w is a log-ratio of likelihoods (Eq. 3), negative for every correct example, so its
    exponential is the weight. $w_0 = 1$ (Protocol 1, line 1).

    Args:
        labels: (n,) integers; the sampler lives on their device.
        sampling_number: adversarial examples an iteration draws; at most n.
        alpha: of Eq. 4, in [0, 1].
        class_balanced: every class gives the same share; the remainder goes round, and what too small a class lacks, others give.
        temperature: a positive number, where a large one draws uniformly, or "auto": the standard deviation of the current
            weights, renewed once a pass over the data (1 during the first), so that the logits' scale does not matter.
        log_weight: for ablations: maps the weights w (n,) to other log weights (n,).
        tree: draw by the sum tree (O(log n) an example, on a CPU), not one sort of all; the law is the same. None: by size.
        seed: of the draws.
    Raises: ValueError: an argument outside what is written here.
    """

    def __init__(
        self,
        labels: Tensor,
        sampling_number: int = 128,
        alpha: float = 0.5,
        *,
        class_balanced: bool = True,
        temperature: float | str = "auto",
        log_weight: Callable[[Tensor], Tensor] | None = None,
        tree: bool | None = None,
        seed: int = 0,
    ):
        super().__init__(labels, sampling_number, seed)
        self.alpha, self.log_weight = alpha, log_weight
        labels = (
            torch.as_tensor(labels).long()
            if class_balanced
            else torch.zeros(self.n, dtype=torch.long, device=self.device)
        )
        counts = labels.bincount()
        groups = ((counts > 0).cumsum(0) - 1)[labels]  # without the gaps that labels may leave
        self._counts, self._draws, self._forest = counts[counts > 0].cpu().numpy(), 0, None
        if tree or (
            tree is None
            and self.device.type == "cpu"
            and self.n >= TREE_FROM
            and log_weight is None
        ):
            from .kernels.tree import Forest  # numba takes a second to load

            self._forest = Forest(groups.numpy(), np.ones(self.n, np.float32))
        else:
            self._weights, self._groups = torch.ones(self.n, device=self.device), groups
        self.temperature = temperature

    def __setattr__(self, name: str, value) -> None:
        """``alpha`` and ``temperature`` may be set while training runs, and are checked then too."""
        if name == "alpha" and not 0 <= value <= 1:
            raise ValueError(f"alpha is {value}; it must lie in [0, 1] (Eq. 4).")
        if (
            name == "temperature"
            and value != "auto"
            and not (isinstance(value, Real) and 0 < value < float("inf"))
        ):
            raise ValueError(f"temperature is {value!r}; it must be a positive number or 'auto'.")
        super().__setattr__(name, value)
        if name == "temperature":
            self._divisor = self._deviation() if value == "auto" else value

    @property
    def weights(self) -> Tensor:
        """(n,) float32: w_t of Eq. 4 of every example, 1 where it was never drawn."""
        return torch.from_numpy(self._forest.weights) if self._forest else self._weights.clone()

    def quotas(self) -> np.ndarray:
        """How many examples of each class the next batch holds; they add up to the sampling number."""
        quotas, growing, left = (
            self._counts.copy(),
            np.arange(len(self._counts)),
            self.sampling_number,
        )
        while len(growing):
            share, extra = divmod(left, len(growing))
            full = quotas[growing] < share + (
                extra > 0
            )  # too small: such a class gives all it has, the others share the rest
            if not full.any():
                quotas[growing] = share
                # the remainder goes on where the last batch stopped: exact over as many batches as there are classes
                quotas[growing[(self._draws * extra + np.arange(extra)) % len(growing)]] += 1
                break
            left, growing = left - quotas[growing[full]].sum(), growing[~full]
        return quotas

    def draw(self) -> Tensor:
        if self.temperature == "auto" and self._draws and self._draws % len(self) == 0:
            self.temperature = "auto"  # renews the deviation
        quotas, self._draws = self.quotas(), self._draws + 1
        if self._forest:
            self._forest.set_temperature(self._divisor)
            seed = torch.randint(2**62, (), generator=self.generator).item()
            drawn = torch.from_numpy(self._forest.draw(quotas, seed)).long()
        else:
            drawn = self._gumbel_top_k(quotas)
        return drawn[torch.randperm(len(drawn), generator=self.generator, device=self.device)]

    def _gumbel_top_k(self, quotas: np.ndarray) -> Tensor:
        # the largest of (log weight + Gumbel noise) are a draw by weight without replacement (Vieira 2014; Kool et al. 2019)
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        log_weight = (
            self.log_weight(self._weights)
            if self.log_weight
            else self._weights.to(dtype) / self._divisor
        )
        gumbel = (
            -torch.empty(self.n, dtype=dtype, device=self.device)
            .exponential_(generator=self.generator)
            .log()
        )
        by_key = (log_weight + gumbel).argsort(descending=True)
        by_class = by_key[self._groups[by_key].argsort(stable=True)]
        starts = np.cumsum(self._counts) - self._counts
        first = np.concatenate([np.arange(s, s + q) for s, q in zip(starts, quotas, strict=True)])
        return by_class[torch.from_numpy(first).to(self.device, non_blocking=True)]

    def _deviation(self) -> float | Tensor:
        """Standard deviation of the weights, 1 if they are all the same; stays on the device."""
        if self._forest:
            return self._forest.deviation() or 1.0
        deviation = (
            self._weights.double().std(correction=0)
            if self.device.type != "mps"
            else self._weights.std(correction=0)
        )
        return torch.where(deviation > 0, deviation, torch.ones_like(deviation))

    def update(self, indices: Tensor, gain: Tensor) -> None:
        """Eq. 4 (Protocol 1, line 6) for different examples at ``indices`` (B,) and their information ``gain`` (B,), finite.

        Raises: IndexError, ValueError: an index outside the data or twice, a gain not finite; no weight was changed. (On a
            GPU, where the draw would wait for such a check, torch stops a wrong index, and a gain not finite is left out.)
        """
        indices, gain = (
            torch.as_tensor(given, device=self.device).detach() for given in (indices, gain)
        )
        indices, gain = indices.long(), gain.float()
        if indices.shape != gain.shape or indices.ndim != 1:
            raise ValueError(
                f"indices {tuple(indices.shape)} and gain {tuple(gain.shape)} must both be (B,)."
            )
        if self.device.type == "cpu" and len(indices):
            if not 0 <= indices.min() <= indices.max() < self.n:
                raise IndexError(
                    f"indices go from {indices.min()} to {indices.max()}; they must lie in 0..{self.n - 1}."
                )
            if len(indices.unique()) < len(indices):
                raise ValueError("an index comes twice; a batch is drawn without replacement.")
            if not gain.isfinite().all():
                raise ValueError(
                    f"gains must be finite, not {gain[~gain.isfinite()][0]}; training may have diverged."
                )
        previous = (
            torch.from_numpy(self._forest.at(indices.numpy()))
            if self._forest
            else self._weights[indices]
        )
        updated = smooth(previous, gain, self.alpha)
        if self._forest:
            self._forest.update(indices.numpy(), updated.numpy())
        else:
            self._weights[indices] = torch.where(gain.isfinite(), updated, previous)

    def state_dict(self) -> dict:
        return super().state_dict() | {
            "weights": self.weights,
            "alpha": self.alpha,
            "temperature": self.temperature,
            "draws": self._draws,
            "divisor": float(self._divisor),
        }

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self.alpha, self.temperature, self._draws = (
            state["alpha"],
            state["temperature"],
            state["draws"],
        )
        if self._forest:
            self._forest.set_weights(state["weights"].numpy())
        else:
            self._weights = state["weights"].to(self.device, copy=True)
        self._divisor = state["divisor"]
