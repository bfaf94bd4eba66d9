"""Checks of the notebooks' exercises: what is wrong with an answer, in words.

A check runs an answer on small inputs whose result is known by hand. Each case catches one mistake
and is described by the rule that the mistake breaks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cf_utils.harness import exercise_cases

TOLERANCE = 1e-5


class Mistake(NamedTuple):
    """One case that an answer fails."""

    rule: str  # what a right answer does
    found: str  # what this answer did

    def __str__(self) -> str:
        return f"{self.rule}: {self.found}"


def mistakes(number: str, *answers: Callable[..., Any]) -> list[Mistake]:
    """Return the cases of exercise `number` that the answers fail; an empty list if all are right.

    Tensors, arrays, numbers and lists of numbers are accepted as results.

    Args:
        number: as in the notebook, such as "1.1".
        answers: the functions that the exercise asks for, in its order.

    Raises NotImplementedError of an answer that is still the stub, and ValueError for an unknown
    exercise or another number of answers.
    """
    if number not in exercise_cases.CASES:
        known = ", ".join(sorted(exercise_cases.CASES))
        raise ValueError(f"number: got {number!r}, expected one of {known}")
    cases = exercise_cases.CASES[number]
    n = 1 + max(case.answer for case in cases)
    if len(answers) != n:
        raise ValueError(f"answers: got {len(answers)}, expected {n} for exercise {number}")
    found = (_try(case, answers[case.answer]) for case in cases)
    return [mistake for mistake in found if mistake is not None]


def count_mistakes(number: str, *answers: Callable[..., Any]) -> int:
    """Print the `mistakes` of the answers to exercise `number`, one per line; return how many."""
    found = mistakes(number, *answers)
    for mistake in found:
        print(f"exercise {number}: {mistake}")
    return len(found)


def _try(case: exercise_cases.Case, answer: Callable[..., Any]) -> Mistake | None:
    arguments = copy.deepcopy(case.arguments)
    try:
        got = answer(*arguments)
    except NotImplementedError:
        raise
    except Exception as error:  # any error of a student's code is a mistake to report
        return Mistake(case.rule, f"your function raised {type(error).__name__}: {error}")
    if not all(map(_same, arguments, case.arguments)):
        return Mistake("the arguments stay as they are", "your function changed one in place")
    try:
        ours, theirs = _to_tensor(case.expected), _to_tensor(got)
    except (TypeError, ValueError, RuntimeError):
        return Mistake(case.rule, f"got {type(got).__name__}, expected numbers or a tensor")
    if ours.shape != theirs.shape:
        shapes = tuple(theirs.shape), tuple(ours.shape)
        return Mistake(case.rule, f"got shape {shapes[0]}, expected {shapes[1]}")
    if not torch.allclose(ours, theirs, TOLERANCE, TOLERANCE, equal_nan=True):
        return Mistake(case.rule, f"got {_show(theirs)}, expected {_show(ours)}")
    return None


def _to_tensor(value: Any) -> Tensor:
    """Convert a tensor, an array, a number or a sequence of them; float64."""
    if isinstance(value, tuple | list):
        return torch.stack([_to_tensor(part) for part in value])
    return torch.as_tensor(value).detach().double()


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def _show(values: Tensor) -> str:
    flat: Iterable[float] = values.flatten()[:6].tolist()
    return ", ".join(f"{v:.4g}" for v in flat) + (", ..." if values.numel() > 6 else "")
