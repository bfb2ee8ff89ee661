"""Eq. 3 and Eq. 4 against loops in Python's own float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from catlib import information_gain, smooth


def gain_by_loop(logits, labels):
    """Eq. 3 as printed: log-likelihoods from the softmax, in float64, one example at a time."""
    gains = []
    for z, y in zip(logits.double().tolist(), labels.tolist(), strict=True):
        shift = max(z)
        normaliser = shift + math.log(math.fsum(math.exp(v - shift) for v in z))
        log_f = [v - normaliser for v in z]
        gains.append(max(v for k, v in enumerate(log_f) if k != y) - log_f[y])
    return torch.tensor(gains, dtype=torch.float64)


@given(
    data=st.data(),
    classes=st.integers(2, 12),
    n=st.integers(0, 9),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_equals_the_loop(data, classes, n, scale, dtype):
    logits = data.draw(npst.arrays(np.float64, (n, classes), elements=st.floats(-1, 1)))
    labels = torch.tensor(
        data.draw(st.lists(st.integers(0, classes - 1), min_size=n, max_size=n)), dtype=torch.long
    )
    logits = (torch.from_numpy(logits) * scale).to(dtype)
    gain = information_gain(logits, labels)
    assert gain.dtype == (
        torch.float64 if dtype == torch.float64 else torch.float32
    ) and gain.shape == (n,)
    # the logits that came in are the truth; nothing may be lost after, whatever their precision
    precision = 1e-14 if dtype == torch.float64 else 2e-7
    torch.testing.assert_close(
        gain.double(), gain_by_loop(logits, labels), atol=2 * scale * precision + 1e-12, rtol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_logits_of_ten_thousand(dtype):
    """The softmax of these is 0 and 1, and the logarithm of its 0 is not finite; the gain is."""
    logits = torch.tensor(
        [[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [1e4, 1e4, -1e4], [-1e4, -1e4, -1e4]], dtype=dtype
    )
    ten_thousand = float(torch.tensor(1e4, dtype=dtype))  # as near as the type has it
    gain = information_gain(logits, torch.tensor([0, 1, 1, 2]))
    assert gain.tolist() == [-ten_thousand, 2 * ten_thousand, 0.0, 0.0]


def test_bfloat16_and_half_lose_nothing_further():
    logits = torch.randn(200, 10, generator=torch.Generator().manual_seed(0)) * 20
    labels = torch.arange(200) % 10
    for dtype in (torch.bfloat16, torch.float16):
        half = logits.to(dtype)
        assert torch.equal(information_gain(half, labels), information_gain(half.float(), labels))


def test_is_negative_where_right_and_positive_where_wrong(classifier, digits):
    images, labels = digits.test()
    logits = classifier(images)
    gain = information_gain(logits, labels)
    assert not gain.requires_grad
    assert torch.equal(gain < 0, logits.argmax(1) == labels) and 0 < (gain > 0).sum() < len(gain)


def test_does_not_feel_what_every_logit_gains(classifier, digits):
    """The softmax's normaliser is in both terms of Eq. 3."""
    images, labels = digits.test()
    logits = classifier(images).double()
    torch.testing.assert_close(
        information_gain(logits + 123.0, labels),
        information_gain(logits, labels),
        atol=1e-10,
        rtol=0,
    )


def test_changes_no_input():
    logits, labels = torch.randn(3, 4, requires_grad=True), torch.tensor([0, 1, 3])
    before = logits.detach().clone()
    information_gain(logits, labels)
    assert (
        torch.equal(logits.detach(), before)
        and labels.tolist() == [0, 1, 3]
        and logits.requires_grad
    )


@given(
    pairs=st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)), max_size=20),
    alpha=st.floats(0, 1),
)
def test_smooth_equals_the_loop(pairs, alpha):
    previous, gain = torch.tensor(pairs, dtype=torch.float64).view(-1, 2).unbind(1)
    expected = [alpha * w + (1 - alpha) * g for w, g in pairs]
    assert smooth(previous, gain, alpha).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_smooth_in_half_precision(dtype):
    """The average is taken in float32: 10000 and 10000.5 are one number in half precision."""
    previous, gain = (
        torch.tensor([1e4, -1e4, 0.5], dtype=dtype),
        torch.tensor([1.0, -3.0, 0.25], dtype=dtype),
    )
    result = smooth(previous, gain, 0.75)
    assert result.dtype == torch.float32
    assert result.tolist() == [
        0.75 * p + 0.25 * g for p, g in zip(previous.tolist(), gain.tolist(), strict=True)
    ]


def test_smooth_at_its_ends():
    previous, gain = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    assert torch.equal(smooth(previous, gain, 0), gain) and torch.equal(
        smooth(previous, gain, 1), previous
    )
