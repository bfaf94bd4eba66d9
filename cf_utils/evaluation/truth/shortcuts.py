"""Which classifier relies on a shortcut? Read a binary factor before and after each explanation."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor, nn

from cf_utils.core import Counterfactuals
from cf_utils.evaluation.metrics.decision import paired_difference
from cf_utils.evaluation.truth.displacement import Oracle, is_undefined
from cf_utils.models.classifiers import predict

HALF = 0.5  # of the scale of a binary factor
COLUMNS = ("moved", "low", "high", "judge", "zero_edit")


def binary_moved(oracle: Oracle, name: str, before: Tensor, after: Tensor) -> Tensor:
    """Whether an oracle's reading of a binary factor moves by more than half its scale.

    The threshold is the same for all methods and classifiers.

    Args: before, after: images (B, C, H, W). Returns: (B,) float64, 0 or 1.
    """
    if name not in oracle.names:
        raise ValueError(f"name: got {name!r}, expected one of {tuple(oracle.names)}")
    at = oracle.names.index(name)
    low, high = (oracle.read(images.float())[0][:, at] for images in (before, after))
    return ((high - low).abs() > HALF).double().cpu()


def shortcut_table(
    arms: Mapping[str, tuple[Counterfactuals, Tensor]],
    oracle: Oracle,
    name: str,
    judge: nn.Module,
) -> pd.DataFrame:
    """In how many valid explanations of each classifier does a binary factor move?

    Args:
        arms: per classifier, its explanations, and the zero edit of the same queries (B, C, H, W).
        oracle: of the world's factors.
        name: the factor.
        judge: independent classifier of the factor's two values, logits (B, 2).

    Returns: index the classifiers; columns `moved` (share by the oracle, see `binary_moved`) with
        `low` and `high` (95 % bootstrap over queries), `judge` (share whose decision by the judge
        changes), `zero_edit` (share moved by the zero edit) and `n`, valid explanations. NaN for a
        classifier without a valid explanation.
    """
    rows = {}
    for arm, (cfs, unedited) in arms.items():
        valid = (cfs.valid & ~is_undefined(cfs)).cpu()
        query, after, same = (x[valid] for x in (cfs.query, cfs.counterfactual, unedited.cpu()))
        if not len(query):
            rows[arm] = dict.fromkeys(COLUMNS, float("nan")) | {"n": 0}
            continue
        moved = binary_moved(oracle, name, query, after)
        found = paired_difference(moved, torch.zeros_like(moved))
        first, second = (predict(judge, images).argmax(1) for images in (query, after))
        rows[arm] = {
            "moved": found["mean"],
            "low": found["low"],
            "high": found["high"],
            "judge": (first != second).double().mean().item(),
            "zero_edit": binary_moved(oracle, name, query, same).mean().item(),
            "n": len(query),
        }
    return pd.DataFrame.from_dict(rows, orient="index")
