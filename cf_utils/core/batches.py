"""Explanations of many items: whole batches, shards, resume."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from cf_utils.core import files
from cf_utils.core.checks import Ids, check_count, check_query, to_list
from cf_utils.core.description import describe
from cf_utils.core.explainer import Explainer
from cf_utils.core.result import REPAIR, Counterfactuals
from cf_utils.core.runtime import progress


def explain_in_batches(
    explain: Explainer,
    classifier: nn.Module,
    x: Tensor,
    target: Tensor,
    ids: Ids | None,
    *,
    tau: float | None = None,
    batch_size: int = 64,
    folder: str | Path | None = None,
    shard: tuple[int, int] = (1, 1),
    desc: str | None = None,
    before_save: Callable[[], None] | None = None,
) -> Counterfactuals | None:
    """Explain many items in batches of consecutive rows.

    The batches do not depend on the number of shards, so sharded runs give the same bits.

    Args:
        explain, classifier, x, target, ids, tau: as in `Explainer.__call__`.
        batch_size: items per batch.
        folder: where batches are stored, each under a hash of everything that it depends on. A
            stored batch is read instead of computed; a damaged one is reported and computed again.
        shard: (k, n) with n > 1 computes only batches k - 1, k - 1 + n, ... and returns None. A
            later call with (1, 1) and the same folder joins the batches of all shards.
        desc: label of the progress bar.
        before_save: called before each batch is written; may raise.
    """
    if ids is None and shard != (1, 1):
        raise ValueError("ids: got None, but row numbers mean nothing in a shard; pass ids")
    k, n = shard
    if not 1 <= k <= n:
        raise ValueError(f"shard: got {k}/{n}, expected 1 <= k <= n")
    check_count("batch_size", batch_size)
    ids = check_query(x, target, ids, explain.bounds, tau)
    setting = json.dumps([describe(explain), describe(classifier), tau], sort_keys=True)
    starts = list(range(0, len(x), batch_size))
    parts = []
    for at in progress(starts[k - 1 :: n], desc=desc or type(explain).__name__, leave=False):
        rows, where = slice(at, at + batch_size), None
        if folder is not None:
            key = files.sha256(setting, x[rows], target[rows], *map(str, to_list(ids[rows])))
            where = Path(folder) / f"{at:06d}-{key[:16]}"
        part = None if where is None else _load_batch(where)
        if part is None:
            part = explain(classifier, x[rows], target[rows], ids[rows], tau)
            if where is not None:
                if before_save is not None:
                    before_save()
                part.save(where)
        if n == 1:  # a shard returns nothing, so it need not keep its results in memory
            parts.append(part)
    if n > 1:
        return None
    whole = Counterfactuals.join(parts)
    order = {i: j for j, i in enumerate(to_list(whole.ids))}
    return whole.select([order[i] for i in to_list(ids)])  # the caller's order, not `join`'s


def _load_batch(folder: Path) -> Counterfactuals | None:
    """Return a stored batch, or None if there is none; warn about a damaged one."""
    if not (folder / "result.json").exists():
        return None
    try:
        return Counterfactuals.load(folder)
    except (ValueError, KeyError, TypeError, OSError) as e:
        problem = str(e).removesuffix(f"; {REPAIR}")
        warnings.warn(f"{folder} is damaged and is computed again: {problem}", stacklevel=3)
        return None
