"""Ctrl-C at every instruction: held back where something is changed, never lost, never twice."""

import signal
import sys
import threading

import pytest

from catlib.interrupts import deferred_interrupts


def press():
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def the_handler_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is before


def test_delivered_at_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupts():
        press()
        press()
        done.append(1)
    assert done == [1]


def test_delivered_once_by_poll():
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupts() as interrupts:
        interrupts.poll()
        press()
        done.append(1)
        interrupts.poll()
        done.append(2)
    assert done == [1]


def test_the_outermost_block_delivers():
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupts():
        with deferred_interrupts() as inner, inner.allowed():
            press()
            done.append(1)
        done.append(2)
    assert done == [1, 2]


def test_poll_delivers_in_an_inner_block_too():
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupts():
        press()
        with deferred_interrupts() as inner:
            done.append(1)
            inner.poll()
            done.append(2)
    assert done == [1]


def test_allowed_is_interrupted_at_once_and_only_once():
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupts() as interrupts:
        try:
            with interrupts.allowed():
                press()
                done.append(1)
        finally:
            press()  # impatient
            done.append(2)
    assert done == [2]


def test_a_block_inside_an_allowed_part_holds_back_again():
    done = []

    def work():
        with deferred_interrupts():
            press()
            done.append(1)
        done.append(2)

    with pytest.raises(KeyboardInterrupt), deferred_interrupts() as interrupts:
        with interrupts.allowed():
            work()
        done.append(3)
    assert done == [1]


def test_polled_is_the_items_until_the_interrupt():
    with deferred_interrupts() as interrupts:
        assert list(interrupts.polled("abc")) == ["a", "b", "c"]
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupts() as interrupts:
        for number in interrupts.polled(range(5)):
            done.append(number)
            if number == 2:
                press()
    assert done == [0, 1, 2]


def test_what_waits_is_delivered_where_it_is_allowed():
    done = []
    with pytest.raises(KeyboardInterrupt), deferred_interrupts() as interrupts:
        press()
        with interrupts.allowed():
            done.append(1)
    assert done == []


def test_a_handler_of_ones_own_gets_the_signal():
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with deferred_interrupts() as interrupts:
            press()
            assert seen == []
            interrupts.poll()
            assert seen == [signal.SIGINT]
            with interrupts.allowed():
                press()
                press()
            assert len(seen) == 3
            press()
        assert len(seen) == 4
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_passes_and_the_interrupt_with_it():
    with pytest.raises(KeyError), deferred_interrupts():
        raise KeyError
    with pytest.raises(KeyboardInterrupt) as caught, deferred_interrupts():
        press()
        raise KeyError
    assert isinstance(caught.value.__context__, KeyError)


def test_does_nothing_where_there_is_nothing_to_hold_back():
    seen = []

    def work():
        with deferred_interrupts() as interrupts, interrupts.allowed():
            interrupts.poll()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        work()
        press()
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [before, signal.SIG_IGN]


def test_ctrl_c_at_every_instruction(interrupted_everywhere):
    """What is changed in the block is always restored, and no interrupt is lost."""
    state = {"borrowed": False, "inner": False}

    def work():
        with deferred_interrupts() as interrupts:
            state["borrowed"] = True
            try:
                with deferred_interrupts() as inner:
                    inner.poll()
                with interrupts.allowed():
                    sum(range(3))
                    with deferred_interrupts():
                        state["inner"] = True
                        state["inner"] = False
            finally:
                state["borrowed"] = False

    def check(delivered):
        assert state == {"borrowed": False, "inner": False}
        assert delivered, "the interrupt was lost"

    assert interrupted_everywhere(work, check) > 50
    assert sys.gettrace() is None
