"""Choose the block of an input to change next, by gradient (Jung et al., Eq. 5) or by trial."""

from __future__ import annotations

import torch
from torch import Tensor

from cf_utils.core import Constraints, PassCounter, block_mean
from cf_utils.explainers.shared.search import per_item

N_PROBES = 9  # values tried per block

Blocks = tuple[Tensor, int]  # block number of each element (...), and how many blocks there are


def rank_by_gradient(
    f: PassCounter, z: Tensor, target: Tensor, rows: Tensor, blocks: Blocks
) -> Tensor:
    """Return the mean |d log f_t / d z| of each block, (B, n_blocks): the order of Eq. 5.

    Args:
        f: the classifier; z[j] belongs to its item rows[j].
        z: inputs (B, ...).
        target: wanted class t per item, (B,).
        blocks: as `core.block_index` gives them.
    """
    z = z.detach().requires_grad_(True)
    log_score = f(z, rows).log_softmax(1).gather(1, target[:, None])
    return block_mean(f.grad(log_score.sum(), z).abs(), *blocks)


def rank_by_probe(
    f: PassCounter,
    z: Tensor,
    target: Tensor,
    rows: Tensor,
    blocks: Blocks,
    query: Tensor,
    constraints: Constraints,
) -> tuple[Tensor, Tensor]:
    """Try values for each block alone, and keep the value with the highest log f_t.

    Per block, N_PROBES values are tried, evenly spaced over the range that `constraints` allow for
    `query` (B, F). The other arguments are those of `rank_by_gradient`.

    Returns: highest log f_t per block, (B, n_blocks); z with the block at that value,
    (B, n_blocks, F).
    """
    index, n_blocks = blocks
    low, high = constraints.box(query)
    best = torch.full((len(z), n_blocks), -torch.inf).to(z)
    best_z = z[:, None].repeat(1, n_blocks, *[1] * (z.ndim - 1))
    alone = index == per_item(torch.arange(n_blocks, device=z.device), index[None])  # (n_blocks, F)
    rows, target = (v.repeat_interleave(n_blocks) for v in (rows, target))
    for level in torch.linspace(0, 1, N_PROBES).tolist():
        value = constraints.snap(torch.lerp(low, high, level), query)
        tried = torch.where(alone, value[:, None], z[:, None])  # (B, n_blocks, F)
        with torch.no_grad():
            log_score = f(tried.flatten(0, 1), rows).log_softmax(1).gather(1, target[:, None])
        log_score = log_score.view(len(z), n_blocks)
        better = log_score > best
        best = torch.where(better, log_score, best)
        best_z = torch.where(better.view(*best.shape, *[1] * index.ndim), tried, best_z)
    return best, best_z


def choose_block(rank: Tensor, mask: Tensor, fixed: Tensor, blocks: Blocks) -> Tensor:
    """Return the block of highest rank that is masked and may change, int64 (B,).

    Args:
        rank: (B, n_blocks).
        mask: (B, ...), 1 where unmasked.
        fixed: (B, n_blocks) bool, blocks that may not change.
        blocks: as `core.block_index` gives them.
    """
    index = blocks[0].flatten().expand(len(rank), -1)
    unmasked = torch.zeros_like(rank).scatter_(1, index, mask.flatten(1))
    return rank.masked_fill((unmasked > 0) | fixed, -torch.inf).argmax(1)
