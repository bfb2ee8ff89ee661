"""Weighted draws without replacement, by sum trees over log weights: the cost barely grows with n.

Every class has a tree of fan-out 16. At its bottom lie the weights of neighbouring examples, in
groups of 16 that fill a cache line; each node above is the sum of the 16 below it. Sums go from
exp(-10^4) to exp(10^4). So a node keeps its sum m 2^e, 1 <= m < 2, as the number e + m - 1, which
is a logarithm made of straight pieces: adding 16 of them takes no exp and no log. A node is always
computed anew from those below it, never by a difference, so rounding errors do not add up, however
many updates there are. A draw walks down from the root and an update walks up from its group: both
take O(log n) steps. numba compiles them.
"""

import warnings
from pathlib import Path

import numba
import numpy as np

FAN = 16
LARGEST = 1e15 / np.log(2)  # size of a node up to which a draw can be trusted; see samplers.py
SECONDS_TO_COMPILE = 5  # measured on one core of 2026
_HALVES = 2.0 ** -np.arange(64)


def _can_keep_compiled_code() -> bool:
    """Whether numba finds a folder for compiled code: beside this file, or in the user's cache."""
    try:
        numba.njit(cache=True)(_can_keep_compiled_code)
    except RuntimeError:
        warnings.warn(
            f"numba can keep no compiled code: neither {Path(__file__).parent / '__pycache__'} nor "
            f"the user's cache folder can be written. Every process that draws by the tree will "
            f"compile it anew, which takes about {SECONDS_TO_COMPILE} seconds. To pay that once, "
            f"set the environment variable NUMBA_CACHE_DIR to a folder that can be written.",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


_jit = numba.njit(cache=_can_keep_compiled_code(), nogil=True)


@_jit
def _share(node: float, exponent: float) -> float:
    """The sum that a node stands for, in units of 2^exponent.

    Below 2^-63 it is 0: rounding would lose it in any sum that has a part of size 1.
    """
    e = np.floor(node)
    return (node - e + 1.0) * _HALVES[int(exponent - e)] if exponent - e < 64 else 0.0


@_jit
def _node(total: float, exponent: float) -> float:
    """The node that stands for total 2^exponent, total >= 1."""
    while total >= 2.0:
        total = total / 2
        exponent = exponent + 1
    return exponent + (total - 1.0)


@_jit
def _sum_weights(weights: np.ndarray, first: int, scale: float) -> float:
    """The node above the group of weights that begins at ``first``."""
    high = weights[first]
    for i in range(first + 1, first + FAN):
        high = max(high, weights[i])
    if high == -np.inf:
        return -np.inf
    exponent = np.floor(high * scale)
    total = 0.0
    for i in range(first, first + FAN):
        total += np.exp2(weights[i] * scale - exponent)
    return _node(total, exponent)


@_jit
def _sum_nodes(nodes: np.ndarray, first: int) -> float:
    """The node above the group of nodes that begins at ``first``."""
    high = nodes[first]
    for i in range(first + 1, first + FAN):
        high = max(high, nodes[i])
    if high == -np.inf:
        return high
    exponent = np.floor(high)
    total = 0.0
    for i in range(first, first + FAN):
        total += _share(nodes[i], exponent)
    return _node(total, exponent)


@_jit
def _refresh(
    c: int,
    position: int,
    weights: np.ndarray,
    nodes: np.ndarray,
    starts: np.ndarray,
    scale: float,
) -> None:
    """Bring every node above one example of class c up to date."""
    i = (position - starts[0, c]) // FAN
    nodes[starts[1, c] + i] = _sum_weights(weights, starts[0, c] + i * FAN, scale)
    for level in range(2, len(starts)):
        i //= FAN
        nodes[starts[level, c] + i] = _sum_nodes(nodes, starts[level - 1, c] + i * FAN)


@_jit
def _build(weights: np.ndarray, nodes: np.ndarray, starts: np.ndarray, scale: float) -> None:
    """Compute every node of every class, from the bottom up."""
    for c in range(starts.shape[1] - 1):
        for i in range((starts[0, c + 1] - starts[0, c]) // FAN):
            nodes[starts[1, c] + i] = _sum_weights(weights, starts[0, c] + i * FAN, scale)
        for level in range(2, len(starts)):
            for i in range((starts[level - 1, c + 1] - starts[level - 1, c]) // FAN):
                nodes[starts[level, c] + i] = _sum_nodes(nodes, starts[level - 1, c] + i * FAN)


@_jit
def _uniform(state: np.ndarray) -> float:
    """The next number in (0, 1) of splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53 + 2.0**-54


@_jit
def _walk(
    c: int,
    weights: np.ndarray,
    nodes: np.ndarray,
    starts: np.ndarray,
    scale: float,
    state: np.ndarray,
) -> tuple[int, bool]:
    """A position in class c, and whether the example there was drawn by weight.

    It was not if the walk ended in a gap: an example that is already drawn but still counted in
    the nodes above it, or what rounding leaves over of a sum.
    """
    node = nodes[starts[-1, c]]
    group = 0
    for level in range(len(starts) - 2, 0, -1):
        exponent = np.floor(node)
        left = _uniform(state) * (node - exponent + 1.0)
        first = starts[level, c] + group * FAN
        i = 0
        left -= _share(nodes[first], exponent)
        while left > 0.0 and i < FAN - 1:
            i += 1
            left -= _share(nodes[first + i], exponent)
        if left > 0.0:
            return starts[0, c], False
        node = nodes[first + i]
        group = group * FAN + i
    exponent = np.floor(node)
    left = _uniform(state) * (node - exponent + 1.0)
    first = starts[0, c] + group * FAN
    for i in range(first, first + FAN):
        left -= np.exp2(weights[i] * scale - exponent)
        if left <= 0.0:
            return i, True
    return first, False


@_jit
def _draw(
    quotas: np.ndarray,
    weights: np.ndarray,
    nodes: np.ndarray,
    starts: np.ndarray,
    scale: float,
    state: np.ndarray,
    out: np.ndarray,
    kept: np.ndarray,
) -> int:
    """Successive sampling: draw with replacement and discard repeats, with the same probabilities.

    A drawn example loses its weight at once. The nodes above it, which cost more, are brought up
    to date only when a walk ends in the gap. So no example, however heavy, is drawn twice, and the
    lightest is still drawn when nothing else is left.

    Returns the number of examples drawn: all, unless a class has log weights that cannot be drawn
    by, being NaN or infinite or so large that a sum cannot be told from its parts.
    """
    n = 0
    complete = True
    for c in range(len(quotas)):
        begin = n
        stale = False
        gaps = 0
        # few walks end in a gap, at most one a drawn example but for rounding; the bound is far off
        most_gaps = 1000 + 100 * quotas[c]
        while n < begin + quotas[c]:
            if gaps > most_gaps or not abs(nodes[starts[-1, c]]) < LARGEST:
                complete = False
                break
            i, found = _walk(c, weights, nodes, starts, scale, state)
            if found:
                out[n] = i
                kept[n] = weights[i]
                weights[i] = -np.inf
                n += 1
            else:
                gaps += 1
                stale = True
                _refresh(c, i, weights, nodes, starts, scale)
        for j in range(begin, n):
            weights[out[j]] = kept[j]
        if stale:
            for j in range(begin, n):
                _refresh(c, out[j], weights, nodes, starts, scale)
        if not complete:
            break
    return n


@_jit
def _update(
    indices: np.ndarray,
    values: np.ndarray,
    position: np.ndarray,
    weights: np.ndarray,
    nodes: np.ndarray,
    starts: np.ndarray,
    scale: float,
) -> None:
    for j in range(len(indices)):  # a loop of its own, so that the waits for memory overlap
        weights[position[indices[j]]] = values[j]
    for j in range(len(indices)):
        i = position[indices[j]]
        _refresh(np.searchsorted(starts[0], i, side="right") - 1, i, weights, nodes, starts, scale)


@_jit
def _group(labels: np.ndarray, free: np.ndarray, order: np.ndarray, position: np.ndarray) -> None:
    """Counting sort: the examples class by class."""
    for i in range(len(labels)):
        p = free[labels[i]]
        order[p] = i
        position[i] = p
        free[labels[i]] += 1


@_jit
def _gather(weights: np.ndarray, position: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(position)):
        out[i] = weights[position[i]]


@_jit
def _scatter(values: np.ndarray, position: np.ndarray, weights: np.ndarray) -> None:
    for i in range(len(position)):
        weights[position[i]] = values[i]


@_jit
def _deviation(weights: np.ndarray, n: int) -> float:
    total = 0.0
    squares = 0.0
    for w in weights:
        if w > -np.inf:
            total += w
    for w in weights:
        if w > -np.inf:
            squares += (w - total / n) ** 2
    return np.sqrt(squares / n)


class Forest:
    """One tree a class over the log weights ``weight / temperature``; about 13 bytes an example.

    Args:
        groups: (n,) int64, the class of each example, 0..C-1, none empty.
        weights: (n,) float32, finite.
    """

    def __init__(self, groups: np.ndarray, weights: np.ndarray):
        self.starts = _layout(np.bincount(groups))
        size = self.starts[0, -1]  # of the weights, padding included
        self.nodes = np.full(self.starts[-1, -1], -np.inf)
        self.order = np.empty(size, np.int32 if size < 2**31 else np.int64)
        self.position = np.empty(len(groups), self.order.dtype)
        _group(groups, self.starts[0, :-1].copy(), self.order, self.position)
        self._weights = np.full(size, -np.inf, np.float32)
        self._scale = 1 / np.log(2)
        self.set_weights(weights)

    @property
    def weights(self) -> np.ndarray:
        """(n,) the weights, in the order of the data; a copy."""
        out = np.empty(len(self.position), np.float32)
        _gather(self._weights, self.position, out)
        return out

    def at(self, indices: np.ndarray) -> np.ndarray:
        """The weights of these examples."""
        return self._weights[self.position[indices]]

    def set_weights(self, weights: np.ndarray) -> None:
        """Replace all of them, (n,) in the order of the data; costs one pass over the data."""
        _scatter(weights, self.position, self._weights)
        _build(self._weights, self.nodes, self.starts, self._scale)

    def set_temperature(self, temperature: float) -> None:
        """Divide every weight by this from now on; costs one pass over the data."""
        scale = 1 / (np.log(2) * temperature)  # the trees count in powers of two
        if scale != self._scale:
            self._scale = scale
            _build(self._weights, self.nodes, self.starts, scale)

    def deviation(self) -> float:
        """Standard deviation of the weights."""
        return float(_deviation(self._weights, len(self.position)))

    def log_sums(self) -> np.ndarray:
        """(C,) the logarithm of each class's sum: what its root stands for."""
        root = self.nodes[self.starts[-1, :-1]]
        exponent = np.floor(root)
        log_sums: np.ndarray = np.log(2) * (exponent + np.log2(root - exponent + 1))
        return log_sums

    def draw(self, quotas: np.ndarray, seed: int) -> np.ndarray:
        """quotas[c] different examples of each class c; (sum of the quotas,) indices as drawn.

        Fewer if the log weights of a class are NaN, infinite or beyond LARGEST in size.
        """
        total = quotas.sum()
        out = np.empty(total, np.int64)
        kept = np.empty(total, np.float32)
        state = np.array([seed], np.uint64)
        n = _draw(quotas, self._weights, self.nodes, self.starts, self._scale, state, out, kept)
        return self.order[out[:n]]

    def update(self, indices: np.ndarray, values: np.ndarray) -> None:
        """Set the weights of these examples: O(log n) each."""
        _update(indices, values, self.position, self._weights, self.nodes, self.starts, self._scale)


def _layout(counts: np.ndarray) -> np.ndarray:
    """Where each class begins at each level: (levels, C + 1) int64, from the counts (C,).

    Level 0 lies in the array of the weights; the others lie one after the other in the array of
    the nodes, the roots last.
    """
    ends: list[np.ndarray] = []
    while not ends or counts.max() > 1:
        padded = -(-counts // FAN) * FAN  # whole groups, so that no walk must look for an end
        ends.append(np.cumsum(padded))
        counts = padded // FAN
    ends.append(np.cumsum(counts))
    starts = np.stack([np.concatenate([[0], end]) for end in ends])
    nodes_of_level = starts[1:-1, -1]
    starts[1:] += np.concatenate([[0], np.cumsum(nodes_of_level)])[:, None]
    return starts
