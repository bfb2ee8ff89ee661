"""Samplers: which examples an iteration trains on (paper, section 2.2)."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from .checks import checked_indices, kind_of
from .gain import FIRST_WEIGHT, smooth

TREE_FROM = 4096  # from this many examples on, the compiled tree draws faster than a sort of all
# At this temperature the first weight, 1, gives a log weight of 1e12: below LARGEST_LOG_WEIGHT.
SMALLEST_TEMPERATURE = 1e-12
# A draw adds noise of about 1 to each log weight. At this size a float64 is rounded to steps of
# about 0.1; with larger ones, rounding would decide the draw.
LARGEST_LOG_WEIGHT = 1e15
LARGE_KEY = 1e30  # larger in size than any key, and a float32 still


class _BatchSampler(Sampler[Tensor], ABC):
    """What both samplers share.

    ``draw()`` gives one batch; an iteration over the sampler gives n // sampling_number batches.
    A batch is (sampling_number,) int64: indices of different examples. Threads may share a sampler:
    one at a time draws, updates or reads it.
    """

    n: int  # examples in the data
    device: torch.device  # that of the labels
    generator: torch.Generator  # of the draws
    _lock: threading.RLock

    def __init__(self, labels: Tensor, sampling_number: int, seed: int):
        labels = _checked_labels(labels)
        if not _is_integer(seed, -(2**63), 2**64 - 1):
            raise ValueError(f"seed is {seed!r}; it must be an integer in -2**63..2**64-1.")
        self._lock = threading.RLock()
        self.n = len(labels)
        self.sampling_number = sampling_number
        self.device = labels.device
        self.generator = torch.Generator(labels.device).manual_seed(int(seed))

    @property
    def sampling_number(self) -> int:
        """Examples in a batch, 1..n; may be set while training runs."""
        return self._sampling_number

    @sampling_number.setter
    def sampling_number(self, value: int) -> None:
        if not _is_integer(value, 1, self.n):
            raise ValueError(
                f"sampling_number is {value!r}; "
                f"it must be an integer in 1..{self.n} (all examples)."
            )
        with self._lock:
            self._sampling_number = int(value)

    @abstractmethod
    def draw(self) -> Tensor:
        """The next batch, (sampling_number,) int64."""

    @abstractmethod
    def update(self, indices: Tensor, gain: Tensor) -> None:
        """Learn from the information gain (B,) of the examples at ``indices`` (B,)."""

    def __len__(self) -> int:
        """Batches in a pass: in as many, as many examples are drawn as there are, at most."""
        return self.n // self.sampling_number

    def __iter__(self) -> Iterator[Tensor]:
        """The batches of one pass; a loop over several passes begins it again and again.

        As a DataLoader's ``batch_sampler`` use it with num_workers=0: workers would draw ahead, by
        weights from before the updates.
        """
        for _ in range(len(self)):
            yield self.draw()

    def state_dict(self) -> dict[str, Any]:
        """A snapshot: what a sampler built from the same arguments needs to draw the same."""
        with self._lock:
            return self._state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken.

        Raises: ValueError: the state of another sampler, or a damaged one; nothing was changed.
        """
        with self._lock:
            self._check_state(state)
            self._set_state(state)

    def _state(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "sampling_number": self.sampling_number,
            "generator": self.generator.get_state(),
        }

    def _check_state(self, state: dict[str, Any]) -> None:
        missing = [name for name in self._state_names() if name not in state]
        if missing:
            raise ValueError(
                f"the state is {_origin(state)}: it lacks {', '.join(missing)}. "
                f"This sampler is a {type(self).__name__}."
            )
        for name in ("n", "sampling_number"):
            own = getattr(self, name)
            if not _is_integer(state[name], own, own):
                raise ValueError(
                    f"the state is of a sampler with {name} {state[name]}; this one has {own}."
                )
        try:
            torch.Generator(self.device).set_state(state["generator"].cpu())
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(
                f"the state's random generator does not fit a sampler on {self.device} ({error})."
            ) from error

    def _set_state(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"].cpu())

    def _state_names(self) -> tuple[str, ...]:
        return ("n", "sampling_number", "generator")

    def __getstate__(self) -> dict[str, Any]:
        """For copy and pickle, which cannot take the lock along."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.RLock()


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
        with self._lock:
            if self._next + self.sampling_number > len(self._order):
                self._order = torch.randperm(self.n, generator=self.generator, device=self.device)
                self._next = 0
            begin = self._next
            self._next += self.sampling_number
            return self._order[begin : self._next].clone()

    def update(self, indices: Tensor, gain: Tensor) -> None:
        """Nothing to learn: every example counts the same."""

    def _state(self) -> dict[str, Any]:
        return super()._state() | {"order": self._order.clone(), "next": self._next}

    def _state_names(self) -> tuple[str, ...]:
        return (*super()._state_names(), "order", "next")

    def _check_state(self, state: dict[str, Any]) -> None:
        super()._check_state(state)
        order = state["order"]
        if not isinstance(order, Tensor) or order.dtype != torch.int64 or order.ndim != 1:
            raise ValueError(f"the state's order is {kind_of(order)}; it must be (n,) torch.int64.")
        if len(order) and not _is_permutation(order, self.n):
            raise ValueError(
                f"the state's order of {len(order)} indices is no order of 0..{self.n - 1}."
            )
        if not _is_integer(state["next"], 0, len(order)):
            raise ValueError(
                f"the state's next is {state['next']!r}; it must be an integer in 0..{len(order)}."
            )

    def _set_state(self, state: dict[str, Any]) -> None:
        super()._set_state(state)
        self._order = state["order"].to(self.device, copy=True)
        self._next = int(state["next"])


class CaseSampler(_BatchSampler):
    r"""CAT: draw by information gain, without replacement, balanced over classes.

    The next example of a class is drawn in proportion to exp(w / temperature) among those of the
    class not yet in the batch. The weight w is a log-ratio of likelihoods (Eq. 3) and negative for
    every correct example, hence the exponential. $w_0 = 1$ (Protocol 1, line 1).

    Args:
        labels: (n,) integers; the sampler lives on their device.
        sampling_number: adversarial examples an iteration draws; at most n.
        alpha: of Eq. 4, in [0, 1].
        class_balanced: every class gets the same share of a batch; the classes take turns at the
            remainder. If a class is too small for its share, the others fill its places.
        temperature: a positive number, where a large one draws uniformly; or "auto": the standard
            deviation of the weights, recomputed every n // sampling_number draws (1 until then),
            so that the scale of the logits does not matter.
        log_weight: the place to change the probability of a draw: maps the weights w (n,) to log
            weights (n,), used instead of w / temperature, e.g. ``near_boundary`` or ``by_rank`` of
            catlib.readings. Needs tree=False.
        tree: draw by a sum tree (O(log n) an example, on a CPU) instead of by one sort of all
            examples; the probabilities are the same. None decides by size. On a GPU the sort is
            replaced by a top-k for each class, again with the same probabilities.
        seed: of the draws.
    Raises: ValueError: an argument outside what is written here.
    """

    _temperature: float | str
    _current_temperature: float | Tensor  # a number also where the temperature is "auto"

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
        self._draws = 0
        # (n,) by which the draws are balanced, as given; None where they are not
        self.balanced_by = torch.as_tensor(labels) if class_balanced else None
        if self.balanced_by is None:
            classes = torch.zeros(self.n, dtype=torch.long, device=self.device)
        else:
            classes = self.balanced_by.long()
        counts = classes.bincount()
        has_examples = counts > 0
        # the classes numbered anew, without the gaps that labels may leave
        compact_number = has_examples.cumsum(0) - 1
        groups = compact_number[classes]
        self._counts = counts[has_examples].cpu().numpy()
        if tree is None:
            tree = self.device.type == "cpu" and self.n >= TREE_FROM and log_weight is None
        # the readable form, or one that is fast on a CPU or a GPU; all draw by the same law
        self._store: _Store
        if tree:
            self._store = _TreeStore(groups)
        elif self.device.type == "cuda" and _TopKStore.is_compact(self._counts):
            self._store = _TopKStore(groups, self._counts)
        else:
            self._store = _SortStore(groups, self._counts)
        self.log_weight = log_weight
        self.temperature = temperature

    @property
    def alpha(self) -> float:
        """The share of the old weight in Eq. 4; may be set while training runs."""
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._alpha = _checked_alpha(value)

    @property
    def temperature(self) -> float | str:
        """A positive number or "auto"; may be set while training runs."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float | str) -> None:
        value = _checked_temperature(value)
        with self._lock:
            self._temperature = value
            if isinstance(value, str):
                self._renew_automatic_temperature()
            else:
                self._current_temperature = value

    @property
    def log_weight(self) -> Callable[[Tensor], Tensor] | None:
        """Other log weights than w / temperature, for ablations; may be set while training runs."""
        return self._log_weight

    @log_weight.setter
    def log_weight(self, value: Callable[[Tensor], Tensor] | None) -> None:
        if value is not None and not callable(value):
            raise ValueError(f"log_weight is {value!r}; it must be a function or None.")
        if value is not None and isinstance(self._store, _TreeStore):
            raise ValueError(
                f"log_weight is {value!r}, but this sampler of {self.n} examples draws by the "
                f"tree, which knows w / temperature alone; build it with tree=False."
            )
        self._log_weight = value

    def _renew_automatic_temperature(self) -> None:
        """Take the standard deviation of the present weights as the temperature from now on."""
        self._current_temperature = self._store.deviation()

    @property
    def weights(self) -> Tensor:
        """(n,) float32: w_t of Eq. 4 of every example, 1 where it was never drawn; a copy."""
        with self._lock:
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
                # the remainder rotates, so that over C batches each class gets the same
                turns = self._draws * extra + np.arange(extra)
                quotas[open_classes[turns % len(open_classes)]] += 1
                break
            left -= quotas[open_classes[too_small]].sum()
            open_classes = open_classes[~too_small]
        return quotas

    def draw(self) -> Tensor:
        """The next batch, (sampling_number,) int64.

        Raises: FloatingPointError: log weights that are not finite, or so large that rounding
            decides the draw; the weights are as before. (On a GPU the draw does not look.)
        """
        with self._lock:
            begins_a_pass = self._draws > 0 and self._draws % len(self) == 0
            if self.temperature == "auto" and begins_a_pass:
                self._renew_automatic_temperature()
            drawn = self._store.draw(
                self.quotas(), self._current_temperature, self.log_weight, self.generator
            )
            self._draws += 1
            # shuffled, so that the place in the batch says nothing about class or weight
            order = torch.randperm(len(drawn), generator=self.generator, device=self.device)
            return drawn[order]

    def update(self, indices: Tensor, gain: Tensor) -> None:
        """Eq. 4 (Protocol 1, line 6) for the examples at ``indices``.

        Args:
            indices: (B,) integers, all different.
            gain: (B,) their information gain (Eq. 3), finite.
        Raises: IndexError, ValueError: an index outside the data or twice, a gain not finite; no
            weight was changed. On a GPU, where such a check would have to wait for the device,
            torch stops a wrong index, and a gain that is not finite is left out.
        """
        indices = checked_indices(indices, self.n, self.device)
        gain = torch.as_tensor(gain, device=self.device).detach().float()
        if indices.shape != gain.shape:
            raise ValueError(
                f"indices {tuple(indices.shape)} and gain {tuple(gain.shape)} must both be (B,)."
            )
        checked = self.device.type == "cpu"
        if checked and len(indices):
            self._check_update(indices, gain)
        with self._lock:
            previous = self._store.at(indices)
            updated = smooth(previous, gain, self.alpha)
            if not checked:
                updated = torch.where(gain.isfinite(), updated, previous)
            self._store.update(indices, updated)

    def _check_update(self, indices: Tensor, gain: Tensor) -> None:
        if len(indices.unique()) < len(indices):
            raise ValueError("an index comes twice; a batch is drawn without replacement.")
        if not gain.isfinite().all():
            raise ValueError(
                f"gains must be finite, not {gain[~gain.isfinite()][0]}; "
                f"training may have diverged."
            )

    def _state(self) -> dict[str, Any]:
        return super()._state() | {
            "weights": self.weights,
            "alpha": self.alpha,
            "temperature": self.temperature,
            "draws": self._draws,
            "divisor": float(self._current_temperature),
        }

    def _state_names(self) -> tuple[str, ...]:
        return (*super()._state_names(), "weights", "alpha", "temperature", "draws", "divisor")

    def _check_state(self, state: dict[str, Any]) -> None:
        super()._check_state(state)
        weights = state["weights"]
        if not isinstance(weights, Tensor) or weights.dtype != torch.float32:
            raise ValueError(f"the state's weights are {kind_of(weights)}; they must be float32.")
        if weights.shape != (self.n,):
            raise ValueError(
                f"the state's weights are of shape {tuple(weights.shape)}; this sampler of "
                f"{self.n} examples needs ({self.n},)."
            )
        if not weights.isfinite().all():
            where = int((~weights.isfinite()).nonzero()[0])
            raise ValueError(
                f"the state's weight of example {where} is {weights[where]}; "
                f"every weight must be finite."
            )
        try:
            _checked_alpha(state["alpha"])
            temperature = _checked_temperature(state["temperature"])
        except ValueError as error:
            raise ValueError(f"in the state, {error}") from error
        draws = state["draws"]
        if not _is_integer(draws, 0, 2**62):
            raise ValueError(f"the state's draws are {draws!r}; it must be an integer in 0..2**62.")
        divisor = state["divisor"]
        if not _is_positive_number(divisor):
            raise ValueError(f"the state's divisor is {divisor!r}; it must be a positive number.")
        if temperature != "auto" and temperature != divisor:
            raise ValueError(
                f"the state's divisor is {divisor!r}, but its temperature is {temperature!r}; "
                f"they must be the same number."
            )

    def _set_state(self, state: dict[str, Any]) -> None:
        super()._set_state(state)
        self._alpha = _checked_alpha(state["alpha"])
        self._temperature = _checked_temperature(state["temperature"])
        self._draws = int(state["draws"])
        self._store.load(state["weights"].detach())
        self._current_temperature = float(state["divisor"])


def _checked_labels(labels: Tensor) -> Tensor:
    """(n,) int64, from integers of any type."""
    labels = torch.as_tensor(labels)
    is_real_or_complex = labels.is_floating_point() or labels.is_complex()
    has_integers = not is_real_or_complex and labels.dtype != torch.bool
    if labels.ndim != 1 or len(labels) == 0 or not has_integers:
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; "
            f"they must be (n,) integers, n > 0."
        )
    labels = labels.long()
    if labels.min() < 0:
        raise ValueError(f"a label is {labels.min()}; labels must lie in 0..K-1.")
    return labels


def _checked_alpha(value: float) -> float:
    if not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"alpha is {value!r}; it must lie in [0, 1] (Eq. 4).")
    return float(value)


def _checked_temperature(value: float | str) -> float | str:
    if isinstance(value, str) and value == "auto":
        return "auto"
    if not _is_positive_number(value):
        raise ValueError(f"temperature is {value!r}; it must be a positive number or 'auto'.")
    if float(value) < SMALLEST_TEMPERATURE:
        raise ValueError(
            f"temperature is {value!r}; it must be at least {SMALLEST_TEMPERATURE}, "
            f"where the largest weights are already drawn first, or 'auto'."
        )
    return float(value)


def _is_permutation(order: Tensor, n: int) -> bool:
    if len(order) != n or order.min() < 0 or order.max() >= n:
        return False
    met = torch.zeros(n, dtype=torch.bool, device=order.device)
    met[order] = True
    return bool(met.all())


def _is_integer(value: object, low: int, high: int) -> bool:
    return isinstance(value, Integral) and low <= int(value) <= high


def _is_positive_number(value: object) -> bool:
    return isinstance(value, Real) and 0 < float(value) < float("inf")


def _origin(state: dict[str, Any]) -> str:
    """Whose state this is, for a message."""
    if "order" in state:
        return "of a UniformSampler"
    if "weights" in state:
        return "of a CaseSampler"
    return "not of a sampler"


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
    """The readable form: one tensor of weights, and a sort of all examples a draw. Any device.

    From TREE_FROM examples on, a CPU draws by _TreeStore instead, and a GPU draws by _TopKStore: a
    change of the law must be made in the first of them too. The second has its keys from here.
    """

    def __init__(self, groups: Tensor, counts: np.ndarray):
        self._groups = groups
        self._counts = counts
        self._weights = torch.full((len(groups),), FIRST_WEIGHT, device=groups.device)

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
        by_key = self._keys(temperature, log_weight, generator).argsort(descending=True)
        # a stable sort: class after class, and within a class still by key
        places_by_class = self._groups[by_key].argsort(stable=True)
        by_class = by_key[places_by_class]
        begins = np.cumsum(self._counts) - self._counts
        first_of_each = [
            np.arange(begin, begin + quota) for begin, quota in zip(begins, quotas, strict=True)
        ]
        places = torch.from_numpy(np.concatenate(first_of_each))
        return by_class[places.to(by_class.device, non_blocking=True)]

    def _keys(
        self,
        temperature: float | Tensor,
        log_weight: Callable[[Tensor], Tensor] | None,
        generator: torch.Generator,
    ) -> Tensor:
        """(n,) log weight + Gumbel noise of every example.

        The examples with the largest are a draw by weight without replacement: Gumbel-top-k
        (Vieira 2014; Kool et al. 2019).
        """
        if log_weight is None:
            log_weights = self._weights.to(self._precision()) / temperature
        else:
            log_weights = log_weight(self._weights.clone())
            if not isinstance(log_weights, Tensor):
                raise TypeError(
                    f"log_weight returned {kind_of(log_weights)}; it must return a tensor (n,), "
                    "computed from the weights that it is given."
                )
            if log_weights.shape != self._weights.shape:
                raise ValueError(
                    f"log_weight returned the shape {tuple(log_weights.shape)} for weights "
                    f"{tuple(self._weights.shape)}; the shapes must be the same."
                )
        # one NaN makes the maximum NaN; on a GPU the check would wait for the device
        if log_weights.device.type == "cpu":
            largest = log_weights.max().item()
            if not abs(largest) < LARGEST_LOG_WEIGHT:
                raise _cannot_draw(log_weights)
        noise = torch.empty(len(log_weights), dtype=self._precision(), device=self._groups.device)
        noise.exponential_(generator=generator)
        gumbel = -noise.log()
        return log_weights + gumbel

    def _precision(self) -> torch.dtype:
        """float64, except on Apple's GPU, which has none."""
        return torch.float32 if self._groups.device.type == "mps" else torch.float64


class _TopKStore(_SortStore):
    """The form for a GPU: the same keys, of which the largest of each class are found by top-k.

    The classes are the rows of a matrix, filled up to the length of the largest, so that one call
    serves all; a sort of all examples takes several times as long there. Any device.
    """

    def __init__(self, groups: Tensor, counts: np.ndarray):
        super().__init__(groups, counts)
        by_class = groups.argsort(stable=True)
        row = groups[by_class]
        begins = torch.from_numpy(np.cumsum(counts) - counts).to(groups.device)
        column = torch.arange(len(groups), device=groups.device) - begins[row]
        shape = (len(counts), int(counts.max()))
        # (classes, examples of the largest class): the examples of each class, then fillers
        self._members = torch.zeros(shape, dtype=torch.long, device=groups.device)
        self._members[row, column] = by_class
        self._is_filler = torch.ones(shape, dtype=torch.bool, device=groups.device)
        self._is_filler[row, column] = False

    @staticmethod
    def is_compact(counts: np.ndarray) -> bool:
        """Whether the matrix of classes of these sizes is at most four times as large as the data.

        With one class far larger than a thousand others it could fill the memory.
        """
        return len(counts) * int(counts.max()) <= 4 * int(counts.sum())

    def draw(
        self,
        quotas: np.ndarray,
        temperature: float | Tensor,
        log_weight: Callable[[Tensor], Tensor] | None,
        generator: torch.Generator,
    ) -> Tensor:
        # finite, so that an example of no weight still comes before the fillers
        keys = self._keys(temperature, log_weight, generator).clamp_(min=-LARGE_KEY)[self._members]
        largest = keys.masked_fill(self._is_filler, -torch.inf).amax(1, keepdim=True)
        # float32 is found faster; counted from the largest key of its class, a key that can win
        # keeps every digit that could change a draw
        narrow = (keys - largest).float().masked_fill_(self._is_filler, -torch.inf)
        largest_quota = int(quotas.max())
        columns = narrow.topk(largest_quota, dim=1).indices
        drawn = self._members.gather(1, columns)
        first_of_each = [
            np.arange(quota) + number * largest_quota for number, quota in enumerate(quotas)
        ]
        places = torch.from_numpy(np.concatenate(first_of_each))
        return drawn.flatten()[places.to(drawn.device, non_blocking=True)]


class _TreeStore:
    """The fast form: sum trees, O(log n) an example, compiled (kernels/tree.py). On a CPU."""

    def __init__(self, groups: Tensor):
        if groups.device.type != "cpu":
            raise ValueError(
                f"tree is True, but the labels are on {groups.device}; "
                f"the tree draws on a CPU: move the labels there, or use tree=False."
            )
        from .kernels.tree import Forest  # numba takes a second to load

        self._forest = Forest(groups.numpy(), np.full(len(groups), FIRST_WEIGHT, np.float32))

    @property
    def weights(self) -> Tensor:
        return torch.from_numpy(self._forest.weights)

    def at(self, indices: Tensor) -> Tensor:
        return torch.from_numpy(self._forest.at(indices.numpy()))

    def update(self, indices: Tensor, weights: Tensor) -> None:
        self._forest.update(indices.numpy(), weights.numpy())

    def load(self, weights: Tensor) -> None:
        on_cpu = weights.cpu().contiguous()
        self._forest.set_weights(on_cpu.numpy())

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
        drawn = self._forest.draw(quotas, int(seed))
        if len(drawn) < quotas.sum():
            raise _cannot_draw(self.weights.double() / float(temperature))
        return torch.from_numpy(drawn).long()


def _cannot_draw(log_weights: Tensor) -> FloatingPointError:
    return FloatingPointError(
        f"log weights (weight / temperature) lie between {log_weights.min():.3g} and "
        f"{log_weights.max():.3g}. A draw by weight needs numbers below {LARGEST_LOG_WEIGHT:.0e} "
        f"in size: training has diverged, or the temperature is too small."
    )
