"""Weighted draws without replacement whose cost does not feel the size of the data: sum trees over log weights.

Every class has a tree of fan-out 16. At its bottom lie the weights of neighbouring examples, a cache line a
group; each node above is the sum of the 16 below it. Sums go from exp(-10^4) to exp(10^4), so a node keeps its
sum m 2^e, 1 <= m < 2, as the number e + m - 1, a logarithm made of straight pieces: adding 16 of them takes no
exp and no log. A node is always computed anew from those below it, never by a difference: nothing drifts,
however many updates. A draw walks down from the root, an update walks up from its group: O(log n) each,
compiled by numba.
"""

import numba
import numpy as np

FAN = 16
_HALVES = 2.0 ** -np.arange(64)
_jit = numba.njit(cache=True, nogil=True)


@_jit
def _share(node, exponent):
    """The sum that a node stands for, in units of 2^exponent; what is below 2^-63 rounding would lose anyway."""
    e = np.floor(node)
    return (node - e + 1.0) * _HALVES[int(exponent - e)] if exponent - e < 64 else 0.0


@_jit
def _node(total, exponent):
    """The node that stands for total 2^exponent, total >= 1."""
    while total >= 2.0:
        total, exponent = total / 2, exponent + 1
    return exponent + (total - 1.0)


@_jit
def _sum_weights(weights, first, scale):
    high = weights[first]
    for i in range(first + 1, first + FAN):
        high = max(high, weights[i])
    if high == -np.inf:
        return -np.inf
    exponent, total = np.floor(high * scale), 0.0
    for i in range(first, first + FAN):
        total += np.exp2(weights[i] * scale - exponent)
    return _node(total, exponent)


@_jit
def _sum_nodes(nodes, first):
    high = nodes[first]
    for i in range(first + 1, first + FAN):
        high = max(high, nodes[i])
    if high == -np.inf:
        return high
    exponent, total = np.floor(high), 0.0
    for i in range(first, first + FAN):
        total += _share(nodes[i], exponent)
    return _node(total, exponent)


@_jit
def _refresh(c, position, weights, nodes, starts, scale):
    """Bring every node above one example of class c up to date."""
    i = (position - starts[0, c]) // FAN
    nodes[starts[1, c] + i] = _sum_weights(weights, starts[0, c] + i * FAN, scale)
    for level in range(2, len(starts)):
        i //= FAN
        nodes[starts[level, c] + i] = _sum_nodes(nodes, starts[level - 1, c] + i * FAN)


@_jit
def _build(weights, nodes, starts, scale):
    for c in range(starts.shape[1] - 1):
        for i in range((starts[0, c + 1] - starts[0, c]) // FAN):
            nodes[starts[1, c] + i] = _sum_weights(weights, starts[0, c] + i * FAN, scale)
        for level in range(2, len(starts)):
            for i in range((starts[level - 1, c + 1] - starts[level - 1, c]) // FAN):
                nodes[starts[level, c] + i] = _sum_nodes(nodes, starts[level - 1, c] + i * FAN)


@_jit
def _uniform(state):
    """The next number in (0, 1) of the splitmix64 generator (Steele, Lea and Flood, OOPSLA 2014)."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53 + 2.0**-54


@_jit
def _walk(c, weights, nodes, starts, scale, state):
    """A position in class c and whether it is an example drawn by weight; if not, the walk fell into a gap.

    Gaps are examples that are gone from a group whose nodes still count them, and what rounding leaves over.
    """
    node, group = nodes[starts[-1, c]], 0
    for level in range(len(starts) - 2, 0, -1):
        exponent = np.floor(node)
        left = _uniform(state) * (node - exponent + 1.0)
        first, i = starts[level, c] + group * FAN, 0
        left -= _share(nodes[first], exponent)
        while left > 0.0 and i < FAN - 1:
            i += 1
            left -= _share(nodes[first + i], exponent)
        if left > 0.0:
            return starts[0, c], False
        node, group = nodes[first + i], group * FAN + i
    exponent = np.floor(node)
    left = _uniform(state) * (node - exponent + 1.0)
    first = starts[0, c] + group * FAN
    for i in range(first, first + FAN):
        left -= np.exp2(weights[i] * scale - exponent)
        if left <= 0.0:
            return i, True
    return first, False


@_jit
def _draw(quotas, weights, nodes, starts, scale, state, out, kept):
    """Successive sampling: draw with replacement and discard repeats, which leaves its law unchanged.

    A drawn example loses its weight at once; the nodes above it, which cost more, when a walk falls into the
    gap. So no example, however heavy, is met twice, and the lightest still comes when nothing else is left.
    """
    n = 0
    for c in range(len(quotas)):
        begin, stale = n, False
        while n < begin + quotas[c]:
            i, found = _walk(c, weights, nodes, starts, scale, state)
            if found:
                out[n], kept[n], weights[i] = i, weights[i], -np.inf
                n += 1
            else:
                stale = True
                _refresh(c, i, weights, nodes, starts, scale)
        for j in range(begin, n):
            weights[out[j]] = kept[j]
        if stale:
            for j in range(begin, n):
                _refresh(c, out[j], weights, nodes, starts, scale)


@_jit
def _update(indices, values, position, weights, nodes, starts, scale):
    for j in range(len(indices)):  # apart, so that the waits for memory overlap
        weights[position[indices[j]]] = values[j]
    for j in range(len(indices)):
        i = position[indices[j]]
        _refresh(np.searchsorted(starts[0], i, side="right") - 1, i, weights, nodes, starts, scale)


@_jit
def _group(labels, free, order, position):
    """Counting sort: the examples class by class."""
    for i in range(len(labels)):
        p = free[labels[i]]
        order[p], position[i] = i, p
        free[labels[i]] += 1


@_jit
def _gather(weights, position, out):
    for i in range(len(position)):
        out[i] = weights[position[i]]


@_jit
def _scatter(values, position, weights):
    for i in range(len(position)):
        weights[position[i]] = values[i]


@_jit
def _deviation(weights, n):
    total = squares = 0.0
    for w in weights:
        if w > -np.inf:
            total += w
    for w in weights:
        if w > -np.inf:
            squares += (w - total / n) ** 2
    return np.sqrt(squares / n)


class Forest:
    """One tree a class over log weights ``weight / temperature``; about 13 bytes an example.

    Args:
        groups: (n,) int64, the class of each example, 0..C-1, none empty.
        weights: (n,) float32, finite.
    """

    def __init__(self, groups: np.ndarray, weights: np.ndarray):
        counts, levels = np.bincount(groups), []
        while len(levels) < 1 or counts.max() > 1:
            padded = -(-counts // FAN) * FAN  # whole groups: no walk looks for an end
            levels.append(np.concatenate([[0], np.cumsum(padded)]))
            counts = padded // FAN
        levels.append(np.concatenate([[0], np.cumsum(counts)]))
        self.starts = np.stack(
            levels
        )  # [level, class]: level 0 in the weights, the others one by one in the nodes
        self.starts[1:] += np.concatenate([[0], np.cumsum(self.starts[1:-1, -1])])[:, None]
        size = self.starts[0, -1]
        self.nodes = np.full(self.starts[-1, -1], -np.inf)
        self.order = np.empty(size, np.int32 if size < 2**31 else np.int64)
        self.position = np.empty(len(groups), self.order.dtype)
        _group(groups, self.starts[0, :-1].copy(), self.order, self.position)
        self._weights, self._scale = np.full(size, -np.inf, np.float32), 1 / np.log(2)
        self.set_weights(weights)

    @property
    def weights(self) -> np.ndarray:
        """(n,) the weights, in the order of the data; a copy."""
        _gather(self._weights, self.position, out := np.empty(len(self.position), np.float32))
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
        exponent = np.floor(root := self.nodes[self.starts[-1, :-1]])
        return np.log(2) * (exponent + np.log2(root - exponent + 1))

    def draw(self, quotas: np.ndarray, seed: int) -> np.ndarray:
        """quotas[c] different examples of each class c, in the order in which they were drawn; (sum,) indices."""
        out, kept = np.empty(quotas.sum(), np.int64), np.empty(quotas.sum(), np.float32)
        _draw(
            quotas,
            self._weights,
            self.nodes,
            self.starts,
            self._scale,
            np.array([seed], np.uint64),
            out,
            kept,
        )
        return self.order[out]

    def update(self, indices: np.ndarray, values: np.ndarray) -> None:
        """Set the weights of these examples: O(log n) each."""
        _update(indices, values, self.position, self._weights, self.nodes, self.starts, self._scale)
