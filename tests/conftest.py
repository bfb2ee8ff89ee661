"""What the tests share: small models, the data, and snapshots of a model to compare with."""

import itertools
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch import nn

import catlib

# property tests draw the same examples every time, so that a red test stays red until it is fixed
settings.register_profile("catlib", deadline=None, derandomize=True, database=None, max_examples=40)
settings.load_profile("catlib")

# a shell lets what it starts in the background ignore Ctrl-C, which is tested here
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# results are bit for bit the same for one number of threads; small models are fastest on one
torch.set_num_threads(1)


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=CUDA)])
def device(request):
    return request.param


@pytest.fixture(scope="session")
def digits() -> catlib.Data:
    return catlib.load_data("digits")


@pytest.fixture(scope="session", params=["mnist", "cifar10"])
def real_data(request) -> catlib.Data:
    """Real images, if they are in CATLIB_DATA, data/cache or shared/data beside the repository."""
    roots = [
        catlib.data.data_root(),
        Path(catlib.__file__).resolve().parents[2] / "shared" / "data",
    ]
    for root in roots:
        if (root / f"{request.param}.npz").exists():
            return catlib.load_data(request.param, root)
    pytest.skip(
        f"no {request.param}.npz in {' or '.join(map(str, roots))}; "
        f"set CATLIB_DATA to the folder that has it"
    )


class ConvNet(nn.Module):
    """Everything that an attack could disturb.

    Two batch norms, one of them frozen, dropout, a frozen parameter, and a .grad.
    """

    def __init__(self, channels: int = 1, classes: int = 10):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(channels, 8, 3, padding=1)
            self.deep = nn.Conv2d(8, 12, 3, stride=2)
            self.norm = nn.BatchNorm2d(8)
            self.frozen_norm = nn.BatchNorm2d(12)
            self.drop = nn.Dropout(0.5)
            self.head = nn.Linear(12, classes)
            for norm in (self.norm, self.frozen_norm):
                nn.init.normal_(norm.running_mean, std=0.3)
                nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(self.head.weight)
        self.conv.bias.requires_grad_(False)
        self.head.weight.grad = torch.ones_like(self.head.weight)
        self.frozen_norm.eval()

    def forward(self, x):
        x = self.norm(self.conv(x - 0.5)).relu()
        x = self.drop(self.frozen_norm(self.deep(x)).relu().mean((2, 3)))
        # like many a model, this one refuses an empty batch
        return self.head(x.view(x.size(0), -1))


@pytest.fixture(scope="session")
def conv_net():
    return ConvNet


@pytest.fixture(scope="session")
def classifier(digits):
    """A model of the digits, trained without adversary: right on most, and easily broken."""
    model = catlib.build_model("cnn", digits)
    training = catlib.Training(
        model,
        digits,
        catlib.UniformSampler(digits.y_train),
        catlib.PGD(0, steps=0),
        iterations=40,
        device="cpu",  # as the images that the tests give it
    )
    for _ in training:
        pass
    for parameter in model.parameters():
        parameter.grad = None
    return model.eval()


@pytest.fixture(scope="session")
def snapshot():
    """A function: all that an attack must leave alone, as values that compare with ==."""

    def take(model: nn.Module) -> list:
        parameters = list(model.named_parameters())
        tensors = [*parameters, *model.named_buffers()]
        return [
            [
                (
                    name,
                    m.training,
                    sorted(k for k in vars(m)),
                    getattr(m, "track_running_stats", None),
                    len(m._forward_hooks),
                )
                for name, m in model.named_modules()
            ],
            [
                (name, t.data_ptr(), t.stride(), t.requires_grad, t.dtype, t.tolist())
                for name, t in tensors
            ],
            [
                (name, None if p.grad is None else (p.grad.data_ptr(), p.grad.tolist()))
                for name, p in parameters
            ],
        ]

    return take


@pytest.fixture(scope="session")
def same():
    """A function: are two states equal bit for bit, through dicts and lists? Seconds aside."""

    def equal(a, b) -> bool:
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b) and a.dtype == b.dtype
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a if k != "seconds")
        if isinstance(a, (list, tuple)):
            return len(a) == len(b) and all(map(equal, a, b))
        return a == b

    return equal


@pytest.fixture
def interrupted_everywhere():
    """A function: run ``work`` again and again, with Ctrl-C at each of its instructions in turn.

    ``check(delivered)`` looks at what is left after each run. Every ``every``-th instruction of the
    files whose name contains ``where`` is taken. Returns the number of interrupted runs.
    """

    def run(work, check, where="", every=1) -> int:
        before = signal.getsignal(signal.SIGINT)
        for count in itertools.count():
            left = 1 + count * every

            def trace(frame, event, _):
                nonlocal left
                if where not in frame.f_code.co_filename or left == 0:
                    return None
                frame.f_trace_opcodes = True
                if event == "opcode":
                    left -= 1
                    if left == 0:
                        sys.settrace(None)
                        signal.raise_signal(signal.SIGINT)
                return trace

            delivered = False
            try:
                # Python 3.12 traces instructions only if a frame has asked for it before
                sys._getframe().f_trace_opcodes = True
                sys.settrace(trace)
                work()
            except KeyboardInterrupt:
                delivered = True
            finally:
                sys.settrace(None)
            assert signal.getsignal(signal.SIGINT) is before
            if left > 0:
                return count  # the work was over before its turn came
            check(delivered)
        raise AssertionError("unreachable")

    return run


@pytest.fixture
def global_rng_untouched():
    """Fails a test that moved the global random state of torch, NumPy or Python."""
    import random

    import numpy as np

    def states():
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return (
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),  # noqa: NPY002 - the global state is what is watched
            [state.tolist() for state in cuda],
        )

    before = states()
    yield
    assert states() == before


@pytest.fixture(scope="session", autouse=True)
def same_folder():
    """No test leaves the process in another folder."""
    before = os.getcwd()
    yield
    assert os.getcwd() == before


@pytest.fixture
def own_images(tmp_path):
    """A folder of colour images in two classes, which differ in their colour."""
    generator = torch.Generator().manual_seed(0)
    for name, channel in (("blue", 2), ("red", 0)):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(60):
            pixels = torch.randint(0, 120, (8, 8, 3), generator=generator, dtype=torch.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
    return str(tmp_path / "photos")
