"""The checks of the exercises: they say why an answer is right, after a hint or two."""

from collections import Counter

import torch

STRICT = False  # the solutions' notebooks set it to True: anything but a right answer then raises
_TRIES: Counter[tuple[str, str]] = Counter()  # wrong tries so far; a check is known by its hints


def check(
    answer, right, why: str, *, hint: str = "", stronger: str = "", on: tuple | None = None
) -> None:
    """Print whether an answer is right; to a wrong one a hint, a stronger one, then the answer.

    The first wrong try shows the hint, the second the stronger hint, the third why the right answer
    is right. A hint that is not given is skipped, so that a check without hints tells the answer at
    the first wrong try. The answer "?", or a function that returns it, asks for it at once. After a
    right answer the tries begin anew. What the answer raises is printed too; only with STRICT does
    anything but a right answer raise.

    Args:
        answer: what the student gave; None, ... and a tuple of nothing else count as blank, which
            is no try.
        right: the right answer (numbers, lists and tensors are compared to 1e-6), or a function of
            the answer that returns True if it is right.
        why: the right answer and the reason behind it, in words that help someone whose answer is
            wrong.
        hint: where to look, without the answer.
        stronger: the step that leads there, still without the answer.
        on: where the answer is a function: the arguments to call it with. What it returns is then
            judged. One of them may be the student's answer, so a "?" among them asks as well.

    Raises: AssertionError: STRICT, and the answer is not right.
    """
    asked = _asks(answer) or _asks(on)
    blank = _blank(answer)
    good = False
    error = ""
    try:
        if on is not None and not blank and not asked:
            answer = answer(*(_copied(argument) for argument in on))
            asked = _asks(answer)
            blank = _blank(answer)
        if not blank and not asked:
            good = bool(right(answer) if callable(right) else _same(answer, right))
    except Exception as problem:  # a student's code may raise anything
        error = f" (your answer raised {type(problem).__name__}: {problem})"
    if asked:
        verdict = f"The answer: {why}"
    elif blank:
        verdict = "not yet: fill in the cell above"
    elif good:
        _TRIES.pop((hint, stronger), None)
        verdict = f"✓ {why}"
    else:
        verdict = _help(why, hint, stronger, error)
    if STRICT and not good:
        raise AssertionError(verdict)
    print(verdict)


def _help(why: str, hint: str, stronger: str, error: str) -> str:
    """What a wrong try is told, by how many there were before it."""
    hints = []
    if hint:
        hints.append(f"Hint: {hint}")
    if stronger:
        hints.append(f"Stronger hint: {stronger}")
    tries = _TRIES[hint, stronger]
    _TRIES[hint, stronger] += 1
    if tries >= len(hints):
        return f"✗ not right{error}. The answer: {why}"
    again = 'Try again, or put "?" in place of your answer to be told.'
    return f"✗ not right yet{error}. {hints[tries]}\n  {again}"


def _copied(argument):
    """A tensor that an answer may change in place, which it would else do in the notebook, too."""
    return argument.clone() if isinstance(argument, torch.Tensor) else argument


def _asks(answer) -> bool:
    """Whether the answer, or a part of it, is a question mark: the student asks to be told."""
    if isinstance(answer, (tuple, list)):
        return any(_asks(part) for part in answer)
    return isinstance(answer, str) and answer.strip() == "?"


def _blank(answer) -> bool:
    if isinstance(answer, tuple) and len(answer) > 0:
        return all(_blank(part) for part in answer)
    return answer is None or answer is ...


def _same(answer, right) -> bool:
    try:
        answer, right = (torch.as_tensor(value, dtype=torch.float64) for value in (answer, right))
    except (TypeError, ValueError, RuntimeError):  # not numbers
        return answer == right
    if answer.numel() == right.numel() == 1:  # a number is right in a shape (1,) too
        answer = answer.flatten()
        right = right.flatten()
    return answer.shape == right.shape and torch.allclose(answer, right, rtol=1e-6, atol=1e-6)
