"""COUT: whether the change reaches the decision early, pixel by pixel.

Source: Khorram & Fuxin, C3LT (CVPR 2022). The counterfactual's pixels replace the query's in
descending order of |change|, summed over channels. COUT is the area under the target's probability
minus the area under the source's, over the share of pixels replaced.
Blind spot: the paper uses the explained classifier's probabilities. This rewards changes of a few
strong pixels, such as adversarial ones. Report COUT under an independent classifier beside it. ACE
reports it on the queries that the classifier gets right, valid or not.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cf_utils.core import device_of
from cf_utils.evaluation.metrics.features import check_images
from cf_utils.models.classifiers import predict


def cout(
    classifier: nn.Module,
    query: Tensor,
    counterfactual: Tensor,
    source: Tensor,
    target: Tensor,
    steps: int = 50,
    official: bool = False,
    batch_size: int = 50,
) -> Tensor:
    """COUT per item. [-1, 1], higher is better; 1 if every blend is classified as the target.

    Equal images give the constant p(target) - p(source) of the query. Costs about steps + 2 forward
    passes per item.

    Args:
        classifier: maps images to logits; the explained classifier or an independent judge.
        query, counterfactual: (B, 3, H, W) in [0, 1].
        source: (B,) int64, the explained classifier's decision on the query; -1 if it was NaN.
        target: (B,) int64, the wanted class.
        steps: number of blends.
        official: reproduce the official code, which gives the last step the width of a full one
            although it has fewer pixels. Values are up to 2 % larger.

    Returns: (B,) float64, NaN where source is -1.
    """
    _check_call(query, counterfactual, source, target, steps)
    pixels = query.shape[2] * query.shape[3]
    result_device, device = query.device, device_of(classifier, query.device)
    query, counterfactual, source, target = (
        t.to(device) for t in (query, counterfactual, source, target)
    )
    rank = _rank_by_change(query, counterfactual)
    step = max(1, pixels // steps)
    shown = [*range(0, pixels, step), pixels]  # number of pixels replaced
    classes, curve = torch.stack([target, source.clamp(min=0)], 1), []
    for k in shown:
        blend = torch.where(rank < k, counterfactual, query)
        p = predict(classifier, blend, batch_size).double().softmax(1).gather(1, classes)
        curve.append(p[:, 0] - p[:, 1])
    height = torch.stack(curve, 1)  # (B, len(shown))
    width = torch.tensor(shown, dtype=height.dtype, device=device).diff()
    width = torch.full_like(width, step) if official else width
    area = ((height[:, :-1] + height[:, 1:]) / 2 * width).sum(1) / pixels
    return torch.where(source >= 0, area, torch.nan).to(result_device)


def _rank_by_change(query: Tensor, counterfactual: Tensor) -> Tensor:
    """Rank pixels by |change| summed over channels, the largest first. (B, 1, H, W) int64."""
    size = (counterfactual - query).abs().sum(1).flatten(1)  # (B, H W)
    order = size.argsort(dim=1, descending=True, stable=True)
    positions = torch.arange(order.shape[1], device=order.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, positions)
    return rank.view(len(query), 1, *query.shape[2:])


def _check_call(
    query: Tensor, counterfactual: Tensor, source: Tensor, target: Tensor, steps: int
) -> None:
    check_images("query", query)
    check_images("counterfactual", counterfactual)
    shapes = tuple(counterfactual.shape), tuple(source.shape), tuple(target.shape)
    expected = tuple(query.shape), (len(query),), (len(query),)
    if shapes != expected:
        raise ValueError(
            f"counterfactual, source, target: got {', '.join(map(str, shapes))}, "
            f"expected {', '.join(map(str, expected))}"
        )
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
