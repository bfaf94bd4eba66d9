"""What the factor oracle of a rendered case reads in filtered images."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from torch import Tensor

from cf_utils.core import device_of
from cf_utils.evaluation.diffusion_prior import survival_table
from cf_utils.harness.cases import Case
from cf_utils.models import checkpoints, oracle_columns

ROLES = ("cause", "identity", "nuisance")


def measure_survival(
    case: Case, x: Tensor, kept: Mapping[float, Tensor]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return which factors survive the filter; both tables are empty without known factors.

    Args:
        x: images (B, C, H, W) of the case, in [0, 1].
        kept: sigma -> filtered images.

    Returns: `survival_table` of the factors that the oracle reads well; and per sigma the mean over
    the factors of each role, in columns such as "survival of cause".
    """
    if case.truth is None:
        factors = pd.Index([], name="factor")
        return (
            pd.DataFrame(index=factors, columns=list(kept), dtype=float),
            pd.DataFrame(index=list(kept)),
        )
    oracle = checkpoints.load(f"{case.dataset}_oracle", device_of(case.classifier)).model
    readable = oracle_columns.readable_factors(case.truth.oracle)
    names = [name for name in oracle.names if oracle_columns.factor_of(name) in readable]
    table = survival_table(oracle, names, x, kept)
    world, roles = case.truth.factors.world, table.index.map(oracle_columns.factor_of)
    means = {f"survival of {role}": table[roles.isin(world.role(role))].mean() for role in ROLES}
    return table, pd.DataFrame(means)
