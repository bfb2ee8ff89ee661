"""Ctrl-C at a safe moment: what must not be left half done is finished, or undone, first."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class Interrupts:
    """The interrupts (SIGINT, Ctrl-C) that are held back in a :func:`deferred_interrupts` block."""

    def poll(self) -> None:
        """Deliver an interrupt that has arrived. Call it where a KeyboardInterrupt does no harm."""

    def polled(self, items: Iterable[T]) -> Iterator[T]:
        """The items, with a :meth:`poll` before each."""
        for item in items:
            self.poll()
            yield item

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A part of the block that may be interrupted anywhere, as a call that takes long.

        The first KeyboardInterrupt ends this part: what unwinds it is not interrupted again.
        """
        yield


class _Deferred(Interrupts):
    """A handler of SIGINT that notes the signal, for the handler that was there before."""

    def __init__(self, before: Callable[[int, FrameType | None], Any]) -> None:
        self.before = before
        self.holding = True
        self._pending = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.holding:
            self._pending = True
            return
        # first of all: what unwinds after the next line must not be interrupted again
        self.holding = True
        self.before(number, frame)
        self.holding = False  # the handler before this one has not raised

    def poll(self) -> None:
        if self._pending:
            self._pending = False
            self.before(signal.SIGINT, None)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        self.holding = False
        try:
            self.poll()
            yield
        finally:
            self.holding = True


class _Nested(Interrupts):
    """A block inside another one, which alone decides what may be interrupted anywhere."""

    def __init__(self, outer: _Deferred) -> None:
        self.outer = outer

    def poll(self) -> None:
        self.outer.poll()


@contextmanager
def deferred_interrupts() -> Iterator[Interrupts]:
    """Hold Ctrl-C back while something is changed that must be restored or completed.

    ``with deferred_interrupts() as interrupts: ...``. An interrupt that arrives in the block is
    delivered by ``interrupts.poll()``, as a KeyboardInterrupt if the handler of SIGINT is Python's
    own, or at the end of the block. In a block inside another one ``poll`` does the same, and the
    end of the inner block delivers nothing, unless it stands in a part that is ``allowed``. Whoever
    defers interrupts must therefore expect a KeyboardInterrupt from a call that polls, as it must
    expect any other error of that call.

    Outside the main thread, where Python delivers no interrupts, and where SIGINT is ignored or
    ends the process, this does nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield Interrupts()
    elif isinstance(before, _Deferred):
        held = before.holding
        before.holding = True
        try:
            yield _Nested(before)
        finally:
            before.holding = held
            if not held:
                before.poll()
    else:
        handler = _Deferred(before)
        signal.signal(signal.SIGINT, handler)
        try:
            yield handler
        finally:
            # unless the block has put a handler of its own there, to stay
            if signal.getsignal(signal.SIGINT) is handler:
                signal.signal(signal.SIGINT, before)
            handler.poll()
