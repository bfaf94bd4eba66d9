"""Does the change reach the decision early, pixel by pixel? COUT.

Source: Khorram & Fuxin, C3LT (CVPR 2022). Pixels of the counterfactual are put into the query in descending order of |change|,
summed over channels; COUT is the area under the target's probability less that under the source's, over the share of pixels put
in. The paper asks the explained classifier, which rewards a few strong pixels, adversarial ones above all: ask a judge beside it.
ACE reports it on the queries that the classifier gets right, valid or not.
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
    """COUT of each item. (B,), in [-1, 1], higher is better: 1 where every blend is the target, -1 where every one is the source.

    Images (B, 3, H, W) in [0, 1]; source, target (B,) int64: the explained classifier's decision on the query and the class asked
    for, also where `classifier` is a judge. A flip by the first step's pixels scores 1 - 1 / steps, a fair coin 0. Equal images
    give the constant p(target) - p(source) of the query. NaN where source is -1 (the decision on the query was NaN).
    `official`: the code's trapezoids, all of H W // steps pixels though the last step has fewer: 51 of them for 50 steps, so
    values are up to 2 % larger; to stand beside the paper's. Forward passes: about steps + 2 an item.
    """
    check_images("query", query)
    check_images("counterfactual", counterfactual)
    n, pixels = len(query), query.shape[2] * query.shape[3]
    if counterfactual.shape != query.shape or source.shape != (n,) or target.shape != (n,):
        raise ValueError(
            f"counterfactual, source, target: got {tuple(counterfactual.shape)}, {tuple(source.shape)}, "
            f"{tuple(target.shape)}, expected {tuple(query.shape)}, ({n},), ({n},)"
        )
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")
    device, place = query.device, device_of(classifier, query.device)
    query, counterfactual, source, target = (
        t.to(place) for t in (query, counterfactual, source, target)
    )
    size = (counterfactual - query).abs().sum(1).flatten(1)  # (B, H W)
    order = size.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(pixels, device=order.device).expand_as(order)
    )
    rank = rank.view(n, 1, *query.shape[2:])
    step = max(1, pixels // steps)
    shown = [*range(0, pixels, step), pixels]  # how many pixels are put in
    classes, curve = torch.stack([target, source.clamp(min=0)], 1), []
    for k in shown:
        p = (
            predict(classifier, torch.where(rank < k, counterfactual, query), batch_size)
            .double()
            .softmax(1)
            .gather(1, classes)
        )
        curve.append(p[:, 0] - p[:, 1])
    curve = torch.stack(curve, 1)  # (B, len(shown))
    width = torch.tensor(shown, dtype=curve.dtype, device=place).diff()
    width = torch.full_like(width, step) if official else width
    area = ((curve[:, :-1] + curve[:, 1:]) / 2 * width).sum(1) / pixels
    return torch.where(source >= 0, area, torch.nan).to(device)
