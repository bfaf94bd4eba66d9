"""Contracts that all methods share: the call, the result, input checks, noise, counted passes."""

from cf_utils.core.batches import explain_in_batches
from cf_utils.core.blocks import block_index, block_mean, total_variation
from cf_utils.core.checks import Ids, check_count, check_query, select_ids, to_list
from cf_utils.core.constraints import Constraints
from cf_utils.core.description import describe
from cf_utils.core.deviation import median_absolute_deviation
from cf_utils.core.explainer import Explainer, SearchResult, target_score
from cf_utils.core.pass_counter import PassCounter, eval_mode, frozen
from cf_utils.core.result import ALREADY, BELOW, NAN, OTHER, Counterfactuals
from cf_utils.core.runtime import (
    device_of,
    draw_rows,
    headless,
    interactive,
    item_noise,
    pick_device,
    progress,
    seed_everything,
)

__all__ = [
    "ALREADY",
    "BELOW",
    "NAN",
    "OTHER",
    "Constraints",
    "Counterfactuals",
    "Explainer",
    "Ids",
    "PassCounter",
    "SearchResult",
    "block_index",
    "block_mean",
    "check_count",
    "check_query",
    "describe",
    "device_of",
    "draw_rows",
    "eval_mode",
    "explain_in_batches",
    "frozen",
    "headless",
    "interactive",
    "item_noise",
    "median_absolute_deviation",
    "pick_device",
    "progress",
    "seed_everything",
    "select_ids",
    "target_score",
    "to_list",
    "total_variation",
]
