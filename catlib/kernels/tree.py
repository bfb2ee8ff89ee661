"""Weighted draws without replacement whose cost does not feel the size of the data: sum trees over log weights.

Every class has a tree. Its leaves are blocks of neighbouring examples, its nodes the logarithm of the summed
weights below them, so weights from exp(-10^4) to exp(10^4) keep their ratios. A node is always computed anew
from its two children, never by a difference: nothing drifts, however many updates. A draw walks down from the
root, an update walks up from its block: O(log n) each, compiled by numba.
"""

import numba
import numpy as np

BLOCK = 32  # examples a leaf: the few cache lines that a walk ends in
_jit = numba.njit(cache=True, nogil=True)


@_jit
def _log_add(a, b):
    high, low = max(a, b), min(a, b)
    return high if low == -np.inf else high + np.log1p(np.exp(low - high))


@_jit
def _block_sum(weights, first, last, scale):
    high = -np.inf
    for i in range(first, last):
        high = max(high, weights[i] * scale)
    if high == -np.inf:
        return high
    total = 0.0
    for i in range(first, last):
        total += np.exp(weights[i] * scale - high)
    return high + np.log(total)


@_jit
def _refresh(position, c, weights, starts, roots, nodes, scale):
    """Bring the block of one example of class c, and every node above it, up to date."""
    blocks = (roots[c + 1] - roots[c]) // 2
    block = (position - starts[c]) // BLOCK
    first = starts[c] + block * BLOCK
    tree, node = nodes[roots[c]:roots[c + 1]], blocks + block
    tree[node] = _block_sum(weights, first, min(first + BLOCK, starts[c + 1]), scale)
    while node > 1:
        node //= 2
        tree[node] = _log_add(tree[2 * node], tree[2 * node + 1])


@_jit
def _build(weights, starts, roots, nodes, scale):
    for c in range(len(roots) - 1):
        blocks = (roots[c + 1] - roots[c]) // 2
        tree = nodes[roots[c]:roots[c + 1]]
        for block in range(blocks):
            first = starts[c] + block * BLOCK
            tree[blocks + block] = _block_sum(weights, first, min(first + BLOCK, starts[c + 1]), scale)
        for node in range(blocks - 1, 0, -1):
            tree[node] = _log_add(tree[2 * node], tree[2 * node + 1])


@_jit
def _uniform(state):
    """The next number in (0, 1) of the splitmix64 generator (Steele, Lea and Flood, OOPSLA 2014)."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53 + 2.0**-54


@_jit
def _walk(c, weights, starts, roots, nodes, scale, state):
    """One example of class c, with probability in proportion to its weight; its position."""
    blocks = (roots[c + 1] - roots[c]) // 2
    tree, node = nodes[roots[c]:roots[c + 1]], 1
    while node < blocks:
        left, right = tree[2 * node], tree[2 * node + 1]
        node = 2 * node if _uniform(state) * (1.0 + np.exp(right - left)) < 1.0 else 2 * node + 1
    first = starts[c] + (node - blocks) * BLOCK
    last = min(first + BLOCK, starts[c + 1])
    threshold, running, choice = _uniform(state), 0.0, first
    for i in range(first, last):
        if weights[i] > -np.inf:
            choice = i  # the last one with a weight takes what rounding leaves over
            running += np.exp(weights[i] * scale - tree[node])
            if running > threshold:
                break
    return choice


@_jit
def _draw(quotas, weights, drawn, starts, roots, nodes, scale, state, out):
    """Successive sampling: draw with replacement and discard repeats, which leaves its law unchanged.

    A repeat is also taken out of the tree until the batch is complete, so that no example, however heavy,
    is met more than twice and the lightest still comes when nothing else is left.
    """
    n = 0
    for c in range(len(quotas)):
        begin, removed = n, []
        while n < begin + quotas[c]:
            i = _walk(c, weights, starts, roots, nodes, scale, state)
            if drawn[i]:
                removed.append((i, weights[i]))
                weights[i] = -np.inf
                _refresh(i, c, weights, starts, roots, nodes, scale)
            else:
                drawn[i], out[n] = True, i
                n += 1
        for i, weight in removed:
            weights[i] = weight
        for i, _ in removed:
            _refresh(i, c, weights, starts, roots, nodes, scale)
    for i in out:
        drawn[i] = False


@_jit
def _update(positions, values, weights, starts, roots, nodes, scale):
    for j in range(len(positions)):
        weights[positions[j]] = values[j]
    for j in range(len(positions)):
        c = np.searchsorted(starts, positions[j], side="right") - 1
        _refresh(positions[j], c, weights, starts, roots, nodes, scale)


@_jit
def _group(labels, starts, order, position):
    """Counting sort: the examples class by class."""
    free = starts[:-1].copy()
    for i in range(len(labels)):
        p = free[labels[i]]
        order[p], position[i] = i, p
        free[labels[i]] += 1


class Forest:
    """One tree a class over log weights ``weight / temperature``; about 14 bytes an example.

    Args:
        groups: (n,) int64, the class of each example, 0..C-1, none empty.
        weights: (n,) float32, finite.
    """

    def __init__(self, groups: np.ndarray, weights: np.ndarray):
        counts = np.bincount(groups)
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.roots = np.concatenate([[0], np.cumsum(2 * -(-counts // BLOCK))])
        self.nodes = np.full(self.roots[-1], -np.inf)
        self.order, self.position = np.empty((2, len(groups)), np.int32 if len(groups) < 2**31 else np.int64)
        _group(groups, self.starts, self.order, self.position)
        self._drawn = np.zeros(len(groups), np.bool_)
        self._scale = 1.0
        self.set_weights(weights)

    @property
    def weights(self) -> np.ndarray:
        """(n,) the weights, in the order of the data; a copy."""
        return self._weights[self.position]

    def at(self, indices: np.ndarray) -> np.ndarray:
        """The weights of these examples."""
        return self._weights[self.position[indices]]

    def set_weights(self, weights: np.ndarray) -> None:
        """Replace all of them, (n,) in the order of the data; costs one pass over the data."""
        self._weights = weights[self.order]
        _build(self._weights, self.starts, self.roots, self.nodes, self._scale)

    def set_temperature(self, temperature: float) -> None:
        """Divide every weight by this from now on; costs one pass over the data."""
        self._scale = 1.0 / temperature
        _build(self._weights, self.starts, self.roots, self.nodes, self._scale)

    def deviation(self) -> float:
        """Standard deviation of the weights."""
        return float(self._weights.std(dtype=np.float64))

    def draw(self, quotas: np.ndarray, seed: int) -> np.ndarray:
        """quotas[c] different examples of each class c, in the order in which they were drawn; (sum,) indices."""
        out = np.empty(quotas.sum(), np.int64)
        _draw(quotas, self._weights, self._drawn, self.starts, self.roots, self.nodes, self._scale,
              np.array([seed], np.uint64), out)
        return self.order[out]

    def update(self, indices: np.ndarray, values: np.ndarray) -> None:
        """Set the weights of these examples: O(log n) each."""
        _update(self.position[indices], values, self._weights, self.starts, self.roots, self.nodes, self._scale)
