"""What a diffusion prior draws, guesses and keeps of an image; tables of images in [0, 1].

A *guess* is the clean image that one pass of the network implies. A *filtered* image has passed
through ACE's filter (Jeanneret et al., CVPR 2023): noise up to a level sigma, then denoised again.
Tables have one row per sigma, the standard deviation of the noise in images of [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cf_utils.core import Counterfactuals, Ids
from cf_utils.evaluation.metrics import features, image
from cf_utils.models.classifiers import predict
from cf_utils.models.generators import schedule
from cf_utils.models.generators.diffusion import DDPM, Chain, noise_of

BATCH = 32  # images per pass of the network
BLOCK = 8  # side in pixels of the blocks whose means give the contrast
CHANGE, DETAIL = "mean |change| of a pixel", "detail, times the image's"
DECISION = "same decision"
UNDONE, KEPT, LEFT = "attack undone", "no attack: decision kept", "attack's size left"
FLOOR = "real against real (floor)"


@torch.no_grad()
def draw_samples(chain: Chain, n: int, like: Tensor, seed: int, size: int = BATCH) -> Tensor:
    """Draw n images (n, C, H, W) in [0, 1] from noise, `size` at a time.

    Image i depends on the seed and on i, not on n. `like` (B, C, H, W) has the images' shape.
    """
    batches = torch.arange(n).split(size)
    return torch.cat([chain.sample(noise_of(seed, i, like, "samples")) for i in batches])


@torch.no_grad()
def map_batches(
    function: Callable[..., Tensor], x: Tensor, ids: Ids, *arguments: Any, size: int = BATCH
) -> Tensor:
    """Return function(x, ids, *arguments) of x (B, ...), computed `size` items at a time."""
    starts = range(0, len(x), size)
    return torch.cat([function(x[k : k + size], ids[k : k + size], *arguments) for k in starts])


def fix_variance(prior: DDPM, spacing: str, bound: str) -> Chain:
    """Return a chain of the prior whose steps have a fixed variance instead of the learned one.

    bound: "large" is beta, the upper bound; "small" is the posterior variance, the lower bound.
    """

    def predict_noise(z: Tensor, t: Tensor) -> Tensor:
        return prior(z, t)[:, : prior.channels]

    return Chain(predict_noise, schedule.linear(len(prior.schedule), bound).respace(spacing))


def neighbour_difference(x: Tensor) -> Tensor:
    """Return the mean absolute difference of neighbouring pixels of images (B, C, H, W), (B,).

    It is small in a blurred image and large in a noisy one.
    """
    across = (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))
    down = (x[..., 1:, :] - x[..., :-1, :]).abs().mean((1, 2, 3))
    return (across + down) / 2


def relative_detail(x: Tensor, reference: Tensor) -> float:
    """Return the mean `neighbour_difference` of images, divided by that of reference images."""
    return (neighbour_difference(x).mean() / neighbour_difference(reference).mean()).item()


def guess_table(x: Tensor, guesses: Mapping[float, tuple[Tensor, Tensor, float]]) -> pd.DataFrame:
    """Compare guesses with the images (B, C, H, W) that were noised, one row per sigma.

    Args:
        guesses: sigma -> noised images, guesses, and the mean squared error of the noise.

    Returns: "error of the noise"; "contrast", the relative detail of means over blocks of 8 x 8
    pixels; "detail", the relative detail of the pixels. Both are 1 for the images themselves.
    """
    rows = {}
    for sigma, (_, guess, error) in guesses.items():
        blocks = F.avg_pool2d(guess, BLOCK), F.avg_pool2d(x, BLOCK)
        rows[sigma] = {
            "error of the noise": error,
            "contrast": relative_detail(*blocks),
            "detail": relative_detail(guess, x),
        }
    return pd.DataFrame(rows).T.rename_axis("sigma")


def filter_table(f: nn.Module, x: Tensor, kept: Mapping[float, Tensor]) -> pd.DataFrame:
    """Return how filtered images differ from the images x (B, C, H, W), one row per sigma.

    Args:
        f: classifier, logits (B, K).
        kept: sigma -> filtered images.

    Returns: mean absolute change of a pixel, relative detail, and share of equal decisions.
    """
    decided, rows = predict(f, x).argmax(1), {}
    for sigma, images in kept.items():
        rows[sigma] = {
            CHANGE: (images - x).abs().mean().item(),
            DETAIL: relative_detail(images, x),
            DECISION: (predict(f, images).argmax(1) == decided).double().mean().item(),
        }
    return pd.DataFrame(rows).T.rename_axis("sigma")


def survival_table(
    oracle: Any, names: Collection[str], x: Tensor, kept: Mapping[float, Tensor]
) -> pd.DataFrame:
    """Return what is left of each factor after the filter, one row per factor, column per sigma.

    It is the correlation over the images between the oracle's readings before and after: 1 if the
    factor is kept, 0 if it is drawn anew. Rows are sorted by the last column, highest first.

    Args:
        oracle: `names` of its columns and `read`, which returns readings (B, K) and their spread.
        names: columns to keep.
        x: images (B, C, H, W). kept: sigma -> filtered images.
    """
    before, found = oracle.read(x)[0].double(), {}
    before = before - before.mean(0)
    for sigma, images in kept.items():
        after = oracle.read(images)[0].double()
        after = after - after.mean(0)
        size = (before.norm(dim=0) * after.norm(dim=0)).clamp(min=1e-9)
        values = ((before * after).sum(0) / size).tolist()
        found[sigma] = dict(zip(oracle.names, values, strict=True))
    table = pd.DataFrame(found).rename_axis("factor")
    table = table[table.index.isin(names)]
    return table.sort_values(table.columns[-1], ascending=False)


def attack_table(
    f: nn.Module,
    attacked: Counterfactuals,
    kept: Mapping[float, Tensor],
    washed: Mapping[float, Tensor],
) -> pd.DataFrame:
    """Return what the filter leaves of an attack, one row per sigma.

    Args:
        f: classifier, logits (B, K).
        attacked: the attack on B images; its successes are the items that are counted.
        kept, washed: sigma -> filtered images, without and with the attack, by the same noise.

    Returns: share of flipped decisions that are back ("attack undone"); share of the same items
    whose decision the filter keeps if there was no attack; l2 norm of the difference between
    `washed` and `kept` divided by that of the attack, over all images; n, flipped items.
    """
    decided, flipped = predict(f, attacked.query).argmax(1), attacked.valid
    size, rows = (attacked.counterfactual - attacked.query).square().sum(), {}
    for sigma, images in washed.items():
        back = predict(f, images).argmax(1) == decided
        alone = predict(f, kept[sigma]).argmax(1) == decided
        rows[sigma] = {
            UNDONE: back[flipped].double().mean().item(),
            KEPT: alone[flipped].double().mean().item(),
            LEFT: ((images - kept[sigma]).square().sum() / size).sqrt().item(),
        }
    return pd.DataFrame(rows).T.rename_axis("sigma").assign(n=int(flipped.sum()))


def kid_table(encoder: nn.Module, real: Tensor, sets: Mapping[str, Tensor]) -> pd.DataFrame:
    """Return the KID of sets of images against real images (N, C, H, W), one row per set.

    The first row compares both halves of the real images: the floor. The first column is
    `kid_embedded`, or `kid` for KID's own encoder.
    """
    others = features.extract(encoder, real)
    first, second = torch.arange(len(others)).tensor_split([len(others) // 2])
    rows = {FLOOR: image.kid(others.take(first), others.take(second))}
    for name, images in sets.items():
        rows[name] = image.kid(others, features.extract(encoder, images))
    whole = ["n_real", "n_fake"]
    return pd.DataFrame(rows).T.drop(columns="subsets").astype(dict.fromkeys(whole, int))
