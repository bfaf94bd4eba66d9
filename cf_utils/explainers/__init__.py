"""Explainers: one file per method, each a frozen dataclass with the call of `core.Explainer`.

`presets` holds their settings for each data set; `shared` holds what several methods use.
"""

from cf_utils.explainers.shared.construction import truncate_at_tau
from cf_utils.explainers.shared.prototypes import average_by_class, mean_logits

__all__ = ["average_by_class", "mean_logits", "truncate_at_tau"]
