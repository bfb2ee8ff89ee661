"""A GPU for machines that have none: real arithmetic on the CPU, behind tensors on "cuda:0".

    make test DEVICE=mock                                  # the whole suite on it, and notebooks
    PYTHONPATH=tests python -m pytest -p mock_gpu tests    # the library's tests alone

A tensor that is moved to "cuda" becomes a :class:`MockTensor`. What a GPU would refuse raises an
error here too: tensors of two devices in one operation, a generator of another device, NumPy on a
tensor of the GPU. What would make the host wait for a GPU is counted in :data:`WAITS`.

It cannot see what only a GPU has: its memory, its time, CUDA graphs and cuDNN. ``torch.compile``
returns its function as it is. Processes that a test starts see no GPU, unless it gives them this
one. What else differs from a real GPU, and fails a test for that reason alone, is listed with the
reason in :data:`ARTEFACTS`. Tests that no device can change are left out; their marker
``no_device`` says why.
"""

import collections
import functools
import threading
import traceback
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
PROPERTIES = SimpleNamespace(name="mock GPU", total_memory=2**34, major=8, minor=0)
ROOT = Path(__file__).parents[1]

# What made the host wait, or copied to or from it: (what, "file:line" in catlib or the tests).
WAITS: collections.Counter[tuple[str, str]] = collections.Counter()

# Tests that fail on the mock and would pass on a GPU, by the beginning of their name; and why.
NOTHING_COMPILED = "it compiles nothing"
ARTEFACTS = {
    "tests/test_kernels.py::test_a_shape_needs_one_graph": NOTHING_COMPILED,
    "tests/test_kernels.py::test_more_shapes_than_torch_compiles": NOTHING_COMPILED,
    "tests/test_kernels.py::test_a_growing_epsilon_compiles": NOTHING_COMPILED,
    "tests/test_kernels.py::test_a_function_is_never_silently": NOTHING_COMPILED,
    "tests/test_kernels.py::test_compiled_training_is_the_same": NOTHING_COMPILED,
    "tests/test_gpu.py::test_compiled_steps_with_cast_weights": NOTHING_COMPILED,
    "tests/test_gpu.py::test_compiled_batches_are_of_one_size": NOTHING_COMPILED,
}

# Operations that may take tensors of two devices.
COPIES = {aten._to_copy.default, aten.copy_.default}
SELECTIONS = {aten.index.Tensor, aten._unsafe_index.Tensor}
ASSIGNMENTS = {aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}

# What a processor without AVX-512 computes in bfloat16 many times slower than in float32.
PRODUCTS = {
    aten.convolution.default,
    aten.convolution_backward.default,
    aten.addmm.default,
    aten.mm.default,
}

# Operations whose result the host must know before it goes on: a number, or a shape.
READS = {
    aten._local_scalar_dense.default: "reads a number",
    aten.equal.default: "compares whole tensors",
    aten.nonzero.default: "counts what is not zero",
    aten.masked_select.default: "counts what is selected",
    aten._unique2.default: "counts what is unique",
    aten.bincount.default: "looks for the largest number",
    aten.repeat_interleave.Tensor: "adds up the repeats",
}


@functools.cache
def file_of_ours(name: str) -> Path | None:
    """The path of a file of catlib or of its tests, from the clone's root; None of any other."""
    path = Path(name)
    is_ours = path.is_relative_to(ROOT) and ".venv" not in path.parts and path != Path(__file__)
    return path.relative_to(ROOT) if is_ours else None


def note(what: str) -> None:
    """Count something for which the host waits, at the place in catlib that asked for it."""
    place = "elsewhere"
    for frame, line in traceback.walk_stack(None):
        path = file_of_ours(frame.f_code.co_filename)
        if path is not None:
            place = f"{path}:{line}"
            break
    WAITS[what, place] += 1


# ---- tensors


class MockTensor(Tensor):
    """A tensor that says it is on "cuda:0". Its numbers are in ``plain``, a tensor of the CPU."""

    plain: Tensor
    is_cuda = True
    is_cpu = False
    device = CUDA
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, plain: Tensor) -> "MockTensor":
        return torch.Tensor._make_wrapper_subclass(
            cls,
            plain.size(),
            strides=plain.stride(),
            storage_offset=plain.storage_offset(),
            dtype=plain.dtype,
            device="cpu",  # as torch itself sees it, which has no driver to ask
        )

    def __init__(self, plain: Tensor) -> None:
        self.plain = plain

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})

    def to(self, *args, **kwargs):
        kwargs = dict(kwargs)
        target = kwargs.pop("device", None)
        if args and isinstance(args[0], Tensor):
            target = args[0].device
            kwargs["dtype"] = args[0].dtype
            args = ()
        elif args and isinstance(args[0], str | torch.device):
            target = args[0]
            args = (None, *args[1:])
        moved = self
        if any(value not in (None, False) for value in (*args, *kwargs.values())):
            moved = Tensor.to(self, *args, **kwargs)
        if target is not None and torch.device(target).type == "cpu":
            return moved.cpu()
        return moved

    def cpu(self):
        note("copy to the host")
        return ToHost.apply(self)

    def cuda(self, *_, **__):
        return self

    def get_device(self):
        return 0

    def tolist(self):
        note("reads numbers")
        return self.plain.tolist()

    def numpy(self, **_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first.")

    def __array__(self, *_, **__):
        self.numpy()

    def __format__(self, form: str) -> str:
        return format(self.item(), form) if self.dim() == 0 else repr(self)

    def __repr__(self, **_) -> str:
        return f"MockTensor({self.plain})"

    def __deepcopy__(self, memo):
        if id(self) in memo:
            return memo[id(self)]
        copied = MockTensor(self.plain.detach().clone()).requires_grad_(self.requires_grad)
        if isinstance(self, nn.Parameter):
            copied = nn.Parameter(copied, self.requires_grad)
        if self.grad is not None:
            copied.grad = self.grad.__deepcopy__(memo)
        memo[id(self)] = copied
        return copied


class ToHost(torch.autograd.Function):
    """The copy to the host; gradients come back the same way."""

    @staticmethod
    def forward(ctx, tensor):
        return tensor.plain.detach().clone()

    @staticmethod
    def backward(ctx, slope):
        return MockTensor(slope)


def plain_of(tensor):
    return tensor.plain if isinstance(tensor, MockTensor) else tensor


def mocked(tensor):
    return tensor if isinstance(tensor, MockTensor) else MockTensor(tensor)


def in_containers(value, change):
    """The value with its tensors changed, in whatever dicts, lists and tuples they lie.

    Torch's pytree does the same and more, and would take half of the time of a test.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return type(value)((key, in_containers(one, change)) for key, one in value.items())
    if type(value) in (list, tuple):
        return type(value)(in_containers(one, change) for one in value)
    return value


def tensors_in(value) -> list[Tensor]:
    found: list[Tensor] = []
    in_containers(value, found.append)
    return found


# ---- operations


def run(operation, args, kwargs):
    """An operation on plain tensors; its result is on the mock device if a GPU would have it."""
    tensors = tensors_in((args, kwargs))
    ours = [tensor for tensor in tensors if isinstance(tensor, MockTensor)]
    others = [tensor for tensor in tensors if not isinstance(tensor, MockTensor)]
    asked = kwargs.get("device")
    # Torch takes our tensors to be on the CPU, and asks for it in copies and in gradients. The one
    # real copy to the host is MockTensor.cpu.
    on_gpu = bool(ours) or is_gpu(asked)
    plain_kwargs = in_containers(kwargs, plain_of)
    if plain_kwargs.get("pin_memory"):
        plain_kwargs["pin_memory"] = False
    if not on_gpu:
        return operation(*args, **plain_kwargs)
    refuse_two_devices(operation, args, ours, others)
    note_waits(operation, args, kwargs, ours)
    if asked is not None:
        plain_kwargs["device"] = torch.device("cpu")
    plain_args = in_containers(args, plain_of)
    if operation in PRODUCTS:
        result = in_float32(operation, plain_args, plain_kwargs)
    else:
        result = operation(*plain_args, **plain_kwargs)
    if operation is aten._local_scalar_dense.default:
        return result
    result = in_containers(result, mocked)
    if ours and operation.namespace == "aten":
        return return_and_correct_aliasing(operation, args, kwargs, result)
    return result


def in_float32(operation, args, kwargs):
    """A product of bfloat16 numbers, added up in float32 as a GPU does, and then rounded."""
    if all(tensor.dtype != torch.bfloat16 for tensor in tensors_in(args)):
        return operation(*args, **kwargs)
    result = operation(*in_containers(args, Tensor.float), **kwargs)
    return in_containers(result, Tensor.bfloat16)


def refuse_two_devices(operation, args, ours, others) -> None:
    """Raise the error of a GPU where tensors of both devices meet."""
    if not ours or not others or operation in COPIES:
        return
    if operation in SELECTIONS | ASSIGNMENTS:
        # indices may be on the host; a single number may be assigned from there
        values = [args[0]] + [v for v in args[2:3] if isinstance(v, Tensor) and v.dim() > 0]
        if len({isinstance(value, MockTensor) for value in values}) == 1 and isinstance(
            args[0], MockTensor
        ):
            return
    elif all(other.dim() == 0 for other in others):
        return  # a single number on the host goes with any tensor
    shapes = [tuple(other.shape) for other in others]
    raise RuntimeError(
        f"Expected all tensors to be on the same device, but {operation} got {shapes} on the cpu "
        f"beside {[tuple(one.shape) for one in ours]} on cuda:0"
    )


def note_waits(operation, args, kwargs, ours) -> None:
    """Count what makes the host wait in this operation, whose result is on the GPU."""
    if operation in READS and ours:
        note(READS[operation])
    elif operation is aten._to_copy.default and not ours:
        aside = ", without waiting" if kwargs.get("non_blocking") else ""
        note(f"copy to the device{aside}")
    elif operation is aten.copy_.default and len(ours) == 1:
        note("copy between the devices")
    elif operation in SELECTIONS | ASSIGNMENTS and isinstance(args[0], MockTensor):
        # a mask to which one number is assigned needs no positions
        one_number = operation in ASSIGNMENTS and args[2].numel() == 1
        for index in args[1]:
            if index is None:
                continue
            if index.dtype == torch.bool and not one_number:
                note("counts what a mask selects")
            elif not isinstance(index, MockTensor):
                note("copy to the device")


class Operations(TorchDispatchMode):
    """Sees the operations that make a tensor from none, such as ``torch.zeros(device="cuda")``."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})


# ---- random generators


class MockGenerator(torch.Generator):
    """A generator that may say it is on the GPU. Its numbers are those of one on the CPU."""

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls, "cpu")
        generator.claimed = CUDA if is_gpu(device) else torch.device("cpu")
        return generator

    def __init__(self, device="cpu") -> None:
        pass

    @property
    def device(self) -> torch.device:
        return self.claimed


class Functions(TorchFunctionMode):
    """Copies a list of numbers to the GPU, and refuses a generator of another device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and is_gpu(kwargs.get("device")):
            return copied_to_gpu(function, args, kwargs)
        result = function(*args, **kwargs)
        generator = kwargs.get("generator")
        if isinstance(generator, torch.Generator) and isinstance(result, Tensor):
            where = "cuda" if isinstance(result, MockTensor) else "cpu"
            if generator.device.type != where:
                raise RuntimeError(
                    f"Expected a '{where}' device type for generator but found "
                    f"'{generator.device.type}'"
                )
        return result


def is_gpu(device) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def copied_to_gpu(function, args, kwargs):
    """What ``torch.tensor`` makes of numbers of the host; torch would ask the driver for it."""
    kwargs = dict(kwargs)
    device = kwargs.pop("device")
    has_gradient = kwargs.pop("requires_grad", False)
    copied = function(*args, **kwargs).to(device)
    return copied.requires_grad_() if has_gradient else copied


# ---- installation


@contextmanager
def gpu():
    """Within it this thread has a GPU, once :func:`install` was called in the process."""
    with Operations(), Functions():
        yield


def install() -> None:
    """Give this process a mock GPU: what asks torch for one is told that it is there."""
    torch._C._ensureCUDADeviceGuardSet()
    state = torch.zeros(16, dtype=torch.uint8)
    answers = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "is_current_stream_capturing": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: "mock GPU",
        "get_device_properties": lambda *_: PROPERTIES,
        "synchronize": lambda *_: note("synchronises"),
        # draws without a generator are from the CPU's global state
        "manual_seed": lambda _: None,
        "manual_seed_all": lambda _: None,
        "get_rng_state": lambda *_: state.clone(),
        "get_rng_state_all": lambda: [state.clone()],
        "set_rng_state": lambda *_: None,
        "set_rng_state_all": lambda *_: None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.Generator = MockGenerator
    torch.autocast = MockAutocast
    torch.is_autocast_enabled = enabled_on_the_cpu(torch.is_autocast_enabled)
    torch.compile = not_compiled
    torch.save = saved_from_the_host(torch.save)
    torch.load = loaded_to_its_device(torch.load)
    nn.Module._apply = with_the_same_parameters(nn.Module._apply)
    threading.Thread.run = with_a_gpu(threading.Thread.run)


class MockAutocast(torch.autocast):
    """Autocast for the GPU is that of the CPU."""

    def __init__(self, device_type: str, *args, **kwargs) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def enabled_on_the_cpu(original):
    return lambda device_type="cuda": original("cpu")


def not_compiled(function=None, **_):
    return function if function is not None else (lambda given: given)


def saved_from_the_host(original):
    @functools.wraps(original)
    def save(value, *args, **kwargs):
        with _disable_current_modes():
            return original(in_containers(value, lambda t: plain_of(t.detach())), *args, **kwargs)

    return save


def loaded_to_its_device(original):
    @functools.wraps(original)
    def load(file, map_location=None, **kwargs):
        with _disable_current_modes():
            value = original(file, map_location="cpu", **kwargs)
        if is_gpu(map_location):
            return in_containers(value, mocked)
        return value

    return load


def with_the_same_parameters(original):
    """``Module.to`` changes parameters in place, as on a GPU, although their class changes."""

    @functools.wraps(original)
    def apply(module, change, recurse=True):
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return original(module, change, recurse)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)

    return apply


def with_a_gpu(original):
    @functools.wraps(original)
    def run_thread(thread):
        with gpu():
            original(thread)

    return run_thread


# ---- as a plugin of pytest


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    install()


def pytest_collection_modifyitems(items) -> None:
    for item in items:
        for name, reason in ARTEFACTS.items():
            if item.nodeid.startswith(name):
                item.add_marker(pytest.mark.skip(reason=f"the mock GPU: {reason}"))
        for marker in item.iter_markers("no_device"):
            [reason] = marker.args
            item.add_marker(pytest.mark.skip(reason=f"no device changes it: {reason}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    with ExitStack() as stack:
        stack.enter_context(gpu())
        return (yield)
