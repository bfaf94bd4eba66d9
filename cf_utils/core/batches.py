"""Many items: whole batches, shards, resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from cf_utils.core import files
from cf_utils.core.checks import check_query, listed
from cf_utils.core.explainer import Explainer, describe
from cf_utils.core.result import Counterfactuals
from cf_utils.core.runtime import progress


def explain_in_batches(
    explain: Explainer,
    classifier: nn.Module,
    x: Tensor,
    target: Tensor,
    ids,
    *,
    score: float | None = None,
    batch_size: int = 64,
    folder: str | Path | None = None,
    shard: tuple[int, int] = (1, 1),
    desc: str | None = None,
    before_save: Callable[[], None] | None = None,
) -> Counterfactuals | None:
    """Explain in whole batches fixed by row, so that any number of shards gives the same numbers, bit for bit.

    With `folder`, each batch is saved under a name that hashes all that it depends on; batches that are there are read, not
    computed again; `before_save` is asked before each is written and may raise. `shard=(k, n)` computes batches k-1,
    k-1+n, ... and returns None when others are left to do.
    """
    if ids is None and shard != (1, 1):
        raise ValueError("ids: None means row numbers, which mean nothing in a shard; pass ids")
    k, n = shard
    if not 1 <= k <= n:
        raise ValueError(f"shard: got {k}/{n}, expected 1 <= k <= n")
    ids = check_query(x, target, ids, explain.bounds, score)
    setting = json.dumps([describe(explain), describe(classifier), score], sort_keys=True)
    starts = list(range(0, len(x), batch_size))
    parts = []
    for at in progress(starts[k - 1 :: n], desc=desc or type(explain).__name__, leave=False):
        rows = slice(at, at + batch_size)
        where = None
        if folder is not None:
            key = files.sha256(setting, x[rows], target[rows], *map(str, listed(ids[rows])))
            where = Path(folder) / f"{at:06d}-{key[:16]}"
            if (where / "result.json").exists():
                parts.append(Counterfactuals.load(where))
                continue
        part = explain(classifier, x[rows], target[rows], ids[rows], score)
        if where is not None:
            if before_save is not None:
                before_save()
            part.save(where)
        parts.append(part)
    if n > 1:
        return None
    whole = Counterfactuals.join(parts)
    order = {i: j for j, i in enumerate(listed(whole.ids))}
    return whole.select([order[i] for i in listed(ids)])  # the caller's order, not the ids'
