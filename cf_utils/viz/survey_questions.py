"""Questions of the paper's three survey tasks, built from progressions of images.

Source: Singla et al. (ICLR 2020), Section 4.6 and Fig. 8. Order: "in which image is the person
smiling more?" Change: "what is changing in the images?" Bias: the same question, with the label
alone or together with a confounder as options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cf_utils import core
from cf_utils.core import Ids
from cf_utils.core.checks import to_list
from cf_utils.core.choices import check_choice

LEFT, RIGHT = "left", "right"
CHANGE_TEXT = "What is changing in the images?"


@dataclass(frozen=True, eq=False)
class Question:
    """A multiple-choice question about images of one item.

    Raises ValueError for fewer than two images or options, images of different shapes, and an
    answer that is no option.
    """

    task: str  # name of the task in the table of results
    category: str  # of the task, such as "easy"
    id: str  # of the item
    images: tuple[Tensor, ...]  # each (1 or 3, H, W) in [0, 1], shown from left to right
    text: str
    options: tuple[str, ...]
    answer: str  # the true one

    def __post_init__(self) -> None:
        shapes = [tuple(image.shape) for image in self.images]
        same = len(set(shapes)) == 1 and len(shapes[0]) == 3 and shapes[0][0] in (1, 3)
        if len(shapes) < 2 or not same:
            raise ValueError(
                f"images: got shapes {shapes}, expected at least two images (1 or 3, H, W) of one "
                "size"
            )
        if len(set(self.options)) < 2 or len(set(self.options)) < len(self.options):
            raise ValueError(f"options: got {self.options}, expected at least two, all different")
        check_choice("answer", self.answer, self.options)


def order_questions(
    progressions: Tensor, ids: Ids, task: str, text: str, seed: int = 0
) -> list[Question]:
    """Ask for the order of two images of one item: an easy and a hard pair for each.

    The easy pair are the two ends of the progression, the hard pair any two different images. The
    pair and the sides depend on (seed, task, id) alone.

    Args:
        progressions: (B, K >= 2, C, H, W) in [0, 1]; what `text` asks for grows with K.
        ids: of the B items.
        task: name of the task, such as "order (smile)".
        text: such as "In which image is the person smiling more?"
    """
    _check_progressions("progressions", progressions, ids)
    n, keys = progressions.shape[1], [f"{task}|{i}" for i in to_list(ids)]
    draws = core.item_noise(seed, keys, (4,), "survey order task", "uniform").double()
    questions = []
    for images, i, (one, other, *sides) in zip(
        progressions.detach().cpu(), to_list(ids), draws.tolist(), strict=True
    ):
        first = int(one * n)
        second = (first + 1 + int(other * (n - 1))) % n
        pairs = {"easy": (0, n - 1), "hard": (min(first, second), max(first, second))}
        for (category, (low, high)), side in zip(pairs.items(), sides, strict=True):
            shown = (high, low) if side < 0.5 else (low, high)
            answer = LEFT if shown[0] == high else RIGHT
            pair = tuple(images[k] for k in shown)
            questions.append(Question(task, category, str(i), pair, text, (LEFT, RIGHT), answer))
    return questions


def change_questions(
    progressions: Mapping[str, tuple[Tensor, Ids]],
    options: Sequence[str],
    task: str = "what changes",
    text: str = CHANGE_TEXT,
) -> list[Question]:
    """Ask what changes along a progression. The category is the attribute that is explained.

    Args:
        progressions: attribute -> (progressions (B, K, C, H, W) in [0, 1], ids of the items).
        options: all attributes that can be chosen, those explained among them.
    """
    return _ask(progressions, options, {name: name for name in progressions}, task, text)


def bias_questions(
    progressions: Mapping[str, tuple[Tensor, Ids]],
    options: Sequence[str],
    answers: Mapping[str, str],
    task: str = "bias",
    text: str = CHANGE_TEXT,
) -> list[Question]:
    """Ask whether the label alone changes along a progression, or a confounder as well.

    Args:
        progressions: classifier, such as "biased" -> (progressions (B, K, C, H, W), ids). Different
            classifiers may explain the same items.
        options: such as ("smile", "smile and gender").
        answers: classifier -> true option. The paper counts the label alone as right for both
            classifiers, so its accuracy for the biased one falls as raters find the bias.
    """
    if missing := sorted(progressions.keys() - answers.keys()):
        raise ValueError(f"answers: got none for {missing}, expected one for each progression")
    return _ask(progressions, options, answers, task, text)


def _ask(
    progressions: Mapping[str, tuple[Tensor, Ids]],
    options: Sequence[str],
    answers: Mapping[str, str],
    task: str,
    text: str,
) -> list[Question]:
    """Ask one question about each progression; the categories are the keys of `progressions`."""
    questions = []
    for category, (images, ids) in progressions.items():
        _check_progressions(f"progressions[{category!r}]", images, ids)
        for own, i in zip(images.detach().cpu(), to_list(ids), strict=True):
            strip, answer = tuple(own.unbind()), answers[category]
            questions.append(Question(task, category, str(i), strip, text, tuple(options), answer))
    return questions


def largest_change(
    read: Callable[[Tensor], Tensor], options: Sequence[str]
) -> Callable[[Question], str]:
    """Return a judge for `change_questions`: it names what changes most between the outer images.

    Args: read: images (N, C, H, W) -> (N, len(options)), one comparable reading per option.
    """

    def answer(question: Question) -> str:
        first, last = read(torch.stack([question.images[0], question.images[-1]]))
        return options[int((last - first).abs().argmax())]

    return answer


def join_images(images: Sequence[Tensor], gap: int = 2) -> Tensor:
    """Join images (C, H, W) from left to right with white gaps: (C, H, K W + (K - 1) gap)."""
    white = torch.ones(*images[0].shape[:2], gap)
    return torch.cat([p for image in images for p in (white, image.float())][1:], 2)


def _check_progressions(name: str, progressions: Tensor, ids: Ids) -> None:
    shape = tuple(progressions.shape)
    if len(shape) != 5 or shape[1] < 2 or shape[2] not in (1, 3) or shape[0] != len(ids):
        raise ValueError(
            f"{name}: got shape {shape} and {len(ids)} ids, expected (B, K >= 2, 1 or 3, H, W) and "
            "B ids"
        )
