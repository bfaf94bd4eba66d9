"""More tables of Progressive Exaggeration: bias, class discrimination, deletion and heart size.

Source: Singla et al. (ICLR 2020), Table 3, Figs. 4b, 4c and 7. As in `progressions`, every table is
one call, and shares are in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from cf_utils.core import Counterfactuals
from cf_utils.evaluation.metrics import confounding, group_tests, response
from cf_utils.evaluation.metrics.attributes import read_attributes
from cf_utils.evaluation.metrics.decision import paired_difference
from cf_utils.evaluation.metrics.deletion import DeletionCurve
from cf_utils.evaluation.progressions import Explanations, images_of
from cf_utils.models.classifiers import predict

NAN = float("nan")


def confounding_table(
    arms: Mapping[str, tuple[Explanations, nn.Module]],
    oracle: nn.Module,
    a: Tensor,
    values: tuple[str, str] = ("female", "male"),
    labels: tuple[str, str] = ("absent", "present"),
) -> pd.DataFrame:
    """Table 3: does the explanation of a classifier change an attribute that it should not?

    Per arm and target label, rows of the attribute's shares among the explanations by the oracle,
    and `confounding`, the share whose attribute differs from the query's. The target label is
    present for an expected response over 0.9, absent for one under 0.1. With two arms or more, rows
    `<first> - <other>` hold the difference of `confounding`.

    Args:
        arms: per explained classifier, explanations of the same queries, and the classifier.
        oracle: g, classifier of the attribute's two values; never explained.
        a: (B,) int64, the true attribute of each query, 0 or 1.
        values: names of the attribute's values 0 and 1; labels: of the explained label's.

    Returns: columns arm, target, figure, value, low, high (95 % bootstrap over queries), n.
    """
    if not arms or a.ndim != 1 or not bool(((a == 0) | (a == 1)).all()):
        raise ValueError(
            f"arms, a: got {len(arms)} arms, a {tuple(a.shape)}, expected 1 or more, 0 or 1 (B,)"
        )
    rows, flips = [], {}
    for arm, (explanations, classifier) in arms.items():
        query, progression = images_of(explanations)
        if len(query) != len(a):
            raise ValueError(f"a: got {len(a)} values, expected one per query, {len(query)}")
        bins = progression.shape[1]
        after = predict(oracle, progression.flatten(0, 1), 100).argmax(1).cpu().view(-1, bins)
        expected = response.expected_response(response.respond(classifier, query), bins)
        for label, selected in zip(labels, (expected < 0.1, expected > 0.9), strict=True):
            for number, name in reversed(list(enumerate(values))):
                share = confounding.attribute_share(after, selected, number)
                rows.append(_interval_row(arm, label, name, share))
            flips[arm, label] = confounding.attribute_flips(a.cpu(), after, selected)
            rows.append(_interval_row(arm, label, "confounding", flips[arm, label]))
    first, *others = arms
    for other in others:
        for label in labels:
            found = confounding.confounding_difference(flips[first, label], flips[other, label])
            place = {"arm": f"{first} - {other}", "target": label, "figure": "confounding"}
            rows.append(place | _rename(found))
    return pd.DataFrame(rows)


def _interval_row(arm: str, target: str, figure: str, values: Tensor) -> dict[str, object]:
    found = paired_difference(values, torch.zeros_like(values))
    return {"arm": arm, "target": target, "figure": figure, **_rename(found)}


def _rename(found: Mapping[str, float | int]) -> dict[str, float | int]:
    return {"value": found["mean"], "low": found["low"], "high": found["high"], "n": found["n"]}


def flip_matrix_table(
    explanations: Mapping[str, Counterfactuals | tuple[Tensor, Tensor]],
    oracle: nn.Module,
    names: Sequence[str],
) -> pd.DataFrame:
    """Fig. 7: per explained attribute (row), share of explanations whose attributes (columns) flip.

    Args:
        explanations: per explained attribute, a result or the pair (query, explanation), both
            (B, C, H, W). All count, whether they reached their target or not.
        oracle: maps images to logits (B, A); an attribute is present where its logit is positive.
        names: the A attributes, in order; every explained attribute is one of them.

    Returns: columns `names` and n, index the explained attributes.
    """
    if unknown := [name for name in explanations if name not in names]:
        raise ValueError(f"explanations: got {unknown}, expected some of {list(names)}")
    rows = {}
    for target, found in explanations.items():
        whole = isinstance(found, Counterfactuals)
        query, after = (found.query, found.counterfactual) if whole else found
        before, changed = (read_attributes(oracle, images).cpu() for images in (query, after))
        if before.shape[1] != len(names):
            raise ValueError(f"names: got {len(names)}, expected one per logit, {before.shape[1]}")
        rates = confounding.flip_rates(before, changed)
        rows[target] = {**dict(zip(names, rates.tolist(), strict=True)), "n": len(query)}
    return pd.DataFrame.from_dict(rows, orient="index")


def flip_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean of the diagonal and of all other cells of `flip_matrix_table`; value, n and note."""
    names = [name for name in table.columns if name != "n"]
    matrix = torch.tensor(table[names].to_numpy(dtype=float))
    diagonal = torch.tensor([names.index(target) for target in table.index])
    own, rest = confounding.diagonal_and_rest(matrix, diagonal)
    n, note = int(table["n"].min()), f"{len(table)} explained attributes of {len(names)}"
    rows = {"flip_diagonal": (own, n, note), "flip_off_diagonal": (rest, n, note)}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "n", "note"])


def deletion_table(
    curves: Mapping[str, DeletionCurve | str], of: str = "accuracy", reference: str = "random"
) -> pd.DataFrame:
    """Fig. 4c as numbers: area under the deletion curve of each map; lower is better.

    Args:
        curves: of `deletion.compare_maps`; a string is the reason why a map is missing.
        of: "accuracy" or "probability".
        reference: the map that the others are compared with.

    Returns: columns value (mean area), n, difference (from the reference) with low and high (95 %,
        paired bootstrap over images), and note.
    """
    if isinstance(base := curves.get(reference, "not given"), str):
        raise ValueError(f"reference: got {reference!r} ({base}), expected one of {list(curves)}")
    rows = {}
    for name, curve in curves.items():
        if isinstance(curve, str):
            lacking = dict.fromkeys(("difference", "low", "high"), NAN)
            rows[name] = {"value": NAN, "n": 0, **lacking, "note": curve}
            continue
        found = paired_difference(curve.area(of), base.area(of))
        rows[name] = {
            "value": curve.area(of).mean().item(),
            "n": len(curve),
            "difference": found["mean"],
            "low": found["low"],
            "high": found["high"],
            "note": f"up to {curve.fractions[-1]:.0%} of the pixels",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def heart_size_groups(
    query_size: Tensor, sizes: Tensor, query_response: Tensor, responses: Tensor
) -> dict[str, Tensor]:
    """The four groups of Fig. 4b: sizes of the heart in real images and in explanations.

    `healthy` are the queries with f < 0.1, `abnormal` those with f > 0.9. `healthy_to_abnormal` are
    the last explanations of the healthy queries, `abnormal_to_healthy` the first ones of the
    abnormal queries. They are NaN where f does not reach the same limit.

    Args: query_size, query_response (B,); sizes, responses (B, K), in the order of the bins.
    """
    shapes = [tuple(t.shape) for t in (query_size, sizes, query_response, responses)]
    b = len(query_size)
    if sizes.ndim != 2 or shapes != [(b,), tuple(sizes.shape), (b,), (b, sizes.shape[1])]:
        raise ValueError(
            f"query_size, sizes, query_response, responses: got {shapes}, expected (B,), (B, K), "
            "(B,), (B, K)"
        )
    query_size, sizes = query_size.double().cpu(), sizes.double().cpu()
    healthy, abnormal = (query_response < 0.1).cpu(), (query_response > 0.9).cpu()
    enlarged = torch.where(responses[:, -1].cpu() > 0.9, sizes[:, -1], torch.nan)
    reduced = torch.where(responses[:, 0].cpu() < 0.1, sizes[:, 0], torch.nan)
    return {
        "healthy": query_size[healthy],
        "healthy_to_abnormal": enlarged[healthy],
        "abnormal": query_size[abnormal],
        "abnormal_to_healthy": reduced[abnormal],
    }


def heart_size_tests(groups: Mapping[str, Tensor], margin: float) -> pd.DataFrame:
    """The tests of Fig. 4b, and an equivalence test beside those that the paper reads as equality.

    Args:
        groups: of `heart_size_groups`.
        margin: difference of mean size that does not matter, in the units of the sizes.

    Returns: rows paired_healthy, paired_abnormal (query against its own explanation), then
        two_sample_* and equivalence_* (real images of a class against explanations that imitate
        it). Columns value (difference of the means), low, high, statistic, p, n, note.
    """
    if not margin > 0:
        raise ValueError(f"margin: got {margin}, expected over 0")
    healthy, enlarged = groups["healthy"], groups["healthy_to_abnormal"]
    abnormal, reduced = groups["abnormal"], groups["abnormal_to_healthy"]
    differ = "small p: the explanation changes the size"
    same = "small p: explanations differ from the class that they imitate"
    equal = f"small p: the means differ by less than {margin:g}"
    plan: dict[str, tuple[Callable[..., group_tests.Result], tuple, str]] = {
        "paired_healthy": (group_tests.paired_test, (healthy, enlarged), differ),
        "paired_abnormal": (group_tests.paired_test, (abnormal, reduced), differ),
        "two_sample_healthy": (group_tests.two_sample_test, (healthy, reduced), same),
        "two_sample_abnormal": (group_tests.two_sample_test, (abnormal, enlarged), same),
        "equivalence_healthy": (group_tests.equivalence_test, (healthy, reduced, margin), equal),
        "equivalence_abnormal": (group_tests.equivalence_test, (abnormal, enlarged, margin), equal),
    }
    rows = {}
    for name, (test, arguments, note) in plan.items():
        try:
            found = {**test(*arguments), "note": note}
        except ValueError as e:  # a group is too small
            found = {"difference": NAN, "n": 0, "note": str(e)}
        rows[name] = {key: found.get(key, NAN) for key in COLUMNS}
    return pd.DataFrame.from_dict(rows, orient="index").rename(columns={"difference": "value"})


COLUMNS = ("difference", "low", "high", "statistic", "p", "n", "note")  # of `heart_size_tests`
