"""The practical tricks: which examples an iteration sees (paper, section 2.2)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from .gain import smooth

TREE_FROM = 4096  # from this many examples on, the compiled tree draws faster than a sort of all


class _BatchSampler(Sampler[Tensor], ABC):
    """What both samplers share: ``draw()`` gives one batch, iterating gives one pass's worth.

    A batch is (sampling_number,) int64: indices of different examples.
    """

    n: int  # examples in the data
    sampling_number: int  # examples in a batch
    device: torch.device  # that of the labels
    generator: torch.Generator  # of the draws

    def __init__(self, labels: Tensor, sampling_number: int, seed: int):
        labels = torch.as_tensor(labels)
        is_integer = not labels.is_floating_point() and labels.dtype != torch.bool
        if labels.ndim != 1 or len(labels) == 0 or not is_integer:
            raise ValueError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)}; "
                f"they must be (n,) integers, n > 0."
            )
        if labels.min() < 0:
            raise ValueError(f"a label is {labels.min()}; labels must lie in 0..K-1.")
        if not isinstance(sampling_number, Integral) or not 1 <= sampling_number <= len(labels):
            raise ValueError(
                f"sampling_number is {sampling_number!r}; "
                f"it must be an integer in 1..{len(labels)} (all examples)."
            )
        self.n = len(labels)
        self.sampling_number = sampling_number
        self.device = labels.device
        self.generator = torch.Generator(labels.device).manual_seed(seed)

    @abstractmethod
    def draw(self) -> Tensor:
        """The next batch, (sampling_number,) int64."""

    @abstractmethod
    def update(self, indices: Tensor, gain: Tensor) -> None:
        """Learn from the information gain (B,) of the examples at ``indices`` (B,)."""

    def __len__(self) -> int:
        return max(1, self.n // self.sampling_number)

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(len(self)):
            yield self.draw()

    def state_dict(self) -> dict[str, Any]:
        """All that a sampler built from the same arguments needs to go on with the same draws."""
        return {
            "n": self.n,
            "sampling_number": self.sampling_number,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken. Raises: ValueError: the state of another sampler."""
        for name in ("n", "sampling_number"):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"the state is of a sampler with {name} {state[name]}; "
                    f"this one has {getattr(self, name)}."
                )
        self.generator.set_state(state["generator"].cpu())


class UniformSampler(_BatchSampler):
    """Vanilla AT: every pass over the data is a fresh shuffle, cut into batches.

    What is left over at the end of a pass, fewer than ``sampling_number``, is dropped.

    Args:
        labels: (n,) integers; only their number and their device matter.
        sampling_number: adversarial examples an iteration draws; at most n.
        seed: of the shuffles.
    Raises: ValueError: an argument outside what is written here.
    """

    def __init__(self, labels: Tensor, sampling_number: int = 128, *, seed: int = 0):
        super().__init__(labels, sampling_number, seed)
        self._order = torch.arange(0)  # of this pass; the first draw makes it
        self._next = 0  # place in the order where the next batch begins

    def draw(self) -> Tensor:
        if self._next + self.sampling_number > len(self._order):
            self._order = torch.randperm(self.n, generator=self.generator, device=self.device)
            self._next = 0
        begin = self._next
        self._next += self.sampling_number
        return self._order[begin : self._next]

    def update(self, indices: Tensor, gain: Tensor) -> None:
        """Nothing to learn: every example counts the same."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"order": self._order, "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._order = state["order"].to(self.device)
        self._next = state["next"]


class CaseSampler(_BatchSampler):
    r"""CAT: draw by information gain, without replacement, balanced over classes.

    The next example of a class is drawn in proportion to exp(w / temperature) among those of the
    class not yet in the batch. The weight w is a log-ratio of likelihoods (Eq. 3) and negative for
    every correct example, hence the exponential. $w_0 = 1$ (Protocol 1, line 1).

    Args:
        labels: (n,) integers; the sampler lives on their device.
        sampling_number: adversarial examples an iteration draws; at most n.
        alpha: of Eq. 4, in [0, 1].
        class_balanced: every class gets the same share of a batch. The remainder goes to each class
            in turn; if a class is too small for its share, the others fill its places.
        temperature: a positive number, where a large one draws uniformly; or "auto", the standard
            deviation of the current weights, renewed once a pass over the data (1 during the
            first), so that the scale of the logits does not matter.
        log_weight: for ablations: maps the weights w (n,) to other log weights (n,).
        tree: draw by a sum tree (O(log n) an example, on a CPU) instead of by one sort of all
            examples; the probabilities are the same. None decides by size.
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
        self.alpha = alpha
        self.log_weight = log_weight
        self._draws = 0
        if class_balanced:
            classes = torch.as_tensor(labels).long()
        else:
            classes = torch.zeros(self.n, dtype=torch.long, device=self.device)
        counts = classes.bincount()
        groups = ((counts > 0).cumsum(0) - 1)[classes]  # without the gaps that labels may leave
        self._counts = counts[counts > 0].cpu().numpy()
        if tree is None:
            tree = self.device.type == "cpu" and self.n >= TREE_FROM and log_weight is None
        # one choice between the readable form and the fast one; both draw by the same probabilities
        self._store: _Store
        if tree:
            self._store = _TreeStore(groups)
        else:
            self._store = _SortStore(groups, self._counts)
        self.temperature = temperature

    @property
    def alpha(self) -> float:
        """The share of the old weight in Eq. 4; may be set while training runs."""
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise ValueError(f"alpha is {value}; it must lie in [0, 1] (Eq. 4).")
        self._alpha = value

    @property
    def temperature(self) -> float | str:
        """A positive number or "auto"; may be set while training runs."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float | str) -> None:
        is_positive = isinstance(value, Real) and 0 < float(value) < float("inf")
        if value != "auto" and not is_positive:
            raise ValueError(f"temperature is {value!r}; it must be a positive number or 'auto'.")
        self._temperature = value
        if isinstance(value, str):
            self._renew_automatic_temperature()
        else:
            self._divisor: float | Tensor = value

    def _renew_automatic_temperature(self) -> None:
        """Divide the weights by their present standard deviation from now on."""
        self._divisor = self._store.deviation()

    @property
    def weights(self) -> Tensor:
        """(n,) float32: w_t of Eq. 4 of every example, 1 where it was never drawn; a copy."""
        return self._store.weights

    def quotas(self) -> np.ndarray:
        """(C,) how many examples of each class the next batch holds; the sum: sampling_number."""
        quotas = self._counts.copy()  # a class too small for its share gives all it has
        open_classes = np.arange(len(quotas))  # the others, which share what is left
        left = self.sampling_number
        while len(open_classes):
            share, extra = divmod(left, len(open_classes))
            largest_share = share + 1 if extra else share
            too_small = quotas[open_classes] < largest_share
            if not too_small.any():
                quotas[open_classes] = share
                # the remainder goes on where the last batch stopped: exact over as many batches
                # as there are classes
                turns = self._draws * extra + np.arange(extra)
                quotas[open_classes[turns % len(open_classes)]] += 1
                break
            left -= quotas[open_classes[too_small]].sum()
            open_classes = open_classes[~too_small]
        return quotas

    def draw(self) -> Tensor:
        begins_a_pass = self._draws > 0 and self._draws % len(self) == 0
        if self.temperature == "auto" and begins_a_pass:
            self._renew_automatic_temperature()
        quotas = self.quotas()
        self._draws += 1
        drawn = self._store.draw(quotas, self._divisor, self.log_weight, self.generator)
        # in any order: the place within a batch says nothing about class or weight
        return drawn[torch.randperm(len(drawn), generator=self.generator, device=self.device)]

    def update(self, indices: Tensor, gain: Tensor) -> None:
        """Eq. 4 (Protocol 1, line 6) for the examples at ``indices``.

        Args:
            indices: (B,) integers, all different.
            gain: (B,) their information gain (Eq. 3), finite.
        Raises: IndexError, ValueError: an index outside the data or twice, a gain not finite; no
            weight was changed. On a GPU, where such a check would have to wait for the device,
            torch stops a wrong index, and a gain that is not finite is left out.
        """
        indices = torch.as_tensor(indices, device=self.device).detach().long()
        gain = torch.as_tensor(gain, device=self.device).detach().float()
        if indices.shape != gain.shape or indices.ndim != 1:
            raise ValueError(
                f"indices {tuple(indices.shape)} and gain {tuple(gain.shape)} must both be (B,)."
            )
        if self.device.type == "cpu" and len(indices):
            self._check_update(indices, gain)
        previous = self._store.at(indices)
        updated = smooth(previous, gain, self.alpha)
        self._store.update(indices, torch.where(gain.isfinite(), updated, previous))

    def _check_update(self, indices: Tensor, gain: Tensor) -> None:
        if not 0 <= indices.min() <= indices.max() < self.n:
            raise IndexError(
                f"indices go from {indices.min()} to {indices.max()}; "
                f"they must lie in 0..{self.n - 1}."
            )
        if len(indices.unique()) < len(indices):
            raise ValueError("an index comes twice; a batch is drawn without replacement.")
        if not gain.isfinite().all():
            raise ValueError(
                f"gains must be finite, not {gain[~gain.isfinite()][0]}; "
                f"training may have diverged."
            )

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "weights": self.weights,
            "alpha": self.alpha,
            "temperature": self.temperature,
            "draws": self._draws,
            "divisor": float(self._divisor),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.alpha = state["alpha"]
        self.temperature = state["temperature"]
        self._draws = state["draws"]
        self._store.load(state["weights"])
        self._divisor = state["divisor"]


class _Store(Protocol):
    """Where CaseSampler keeps its weights, and how it draws by them."""

    @property
    def weights(self) -> Tensor:
        """(n,) float32, a copy."""

    def at(self, indices: Tensor) -> Tensor:
        """The weights (B,) of the examples at ``indices`` (B,)."""

    def update(self, indices: Tensor, weights: Tensor) -> None:
        """Set the weights (B,) of the examples at ``indices`` (B,)."""

    def load(self, weights: Tensor) -> None:
        """Set all weights, (n,)."""

    def deviation(self) -> float | Tensor:
        """The standard deviation of the weights, 1 if they are all the same."""

    def draw(
        self,
        quotas: np.ndarray,
        temperature: float | Tensor,
        log_weight: Callable[[Tensor], Tensor] | None,
        generator: torch.Generator,
    ) -> Tensor:
        """quotas[c] different examples of each class c, (sum of the quotas,) int64."""


class _SortStore:
    """The readable form: one tensor of weights, and a sort of all examples a draw. Any device."""

    def __init__(self, groups: Tensor, counts: np.ndarray):
        self._groups = groups
        self._counts = counts
        self._weights = torch.ones(len(groups), device=groups.device)

    @property
    def weights(self) -> Tensor:
        return self._weights.clone()

    def at(self, indices: Tensor) -> Tensor:
        return self._weights[indices]

    def update(self, indices: Tensor, weights: Tensor) -> None:
        self._weights[indices] = weights

    def load(self, weights: Tensor) -> None:
        self._weights = weights.to(self._groups.device, copy=True)

    def deviation(self) -> Tensor:
        # stays on the device: asking for the number would wait for a GPU
        deviation = self._weights.to(self._precision()).std(correction=0)
        return torch.where(deviation > 0, deviation, torch.ones_like(deviation))

    def draw(
        self,
        quotas: np.ndarray,
        temperature: float | Tensor,
        log_weight: Callable[[Tensor], Tensor] | None,
        generator: torch.Generator,
    ) -> Tensor:
        # Gumbel-top-k: the largest of (log weight + Gumbel noise) are a draw by weight without
        # replacement (Vieira 2014; Kool et al. 2019)
        if log_weight is None:
            log_weights = self._weights.to(self._precision()) / temperature
        else:
            log_weights = log_weight(self._weights)
        noise = torch.empty(len(log_weights), dtype=self._precision(), device=self._groups.device)
        gumbel = -noise.exponential_(generator=generator).log()
        by_key = (log_weights + gumbel).argsort(descending=True)
        by_class = by_key[self._groups[by_key].argsort(stable=True)]  # within a class by key
        begins = np.cumsum(self._counts) - self._counts
        first_of_each = [
            np.arange(begin, begin + quota) for begin, quota in zip(begins, quotas, strict=True)
        ]
        places = torch.from_numpy(np.concatenate(first_of_each))
        return by_class[places.to(by_class.device, non_blocking=True)]

    def _precision(self) -> torch.dtype:
        """float64, except on Apple's GPU, which has none."""
        return torch.float32 if self._groups.device.type == "mps" else torch.float64


class _TreeStore:
    """The fast form: sum trees, O(log n) an example, compiled (kernels/tree.py). On a CPU."""

    def __init__(self, groups: Tensor):
        from .kernels.tree import Forest  # numba takes a second to load

        self._forest = Forest(groups.numpy(), np.ones(len(groups), np.float32))

    @property
    def weights(self) -> Tensor:
        return torch.from_numpy(self._forest.weights)

    def at(self, indices: Tensor) -> Tensor:
        return torch.from_numpy(self._forest.at(indices.numpy()))

    def update(self, indices: Tensor, weights: Tensor) -> None:
        self._forest.update(indices.numpy(), weights.numpy())

    def load(self, weights: Tensor) -> None:
        self._forest.set_weights(weights.cpu().numpy())

    def deviation(self) -> float:
        return self._forest.deviation() or 1.0

    def draw(
        self,
        quotas: np.ndarray,
        temperature: float | Tensor,
        log_weight: Callable[[Tensor], Tensor] | None,
        generator: torch.Generator,
    ) -> Tensor:
        self._forest.set_temperature(float(temperature))
        seed = torch.randint(2**62, (), generator=generator)
        return torch.from_numpy(self._forest.draw(quotas, int(seed))).long()
