"""Explainers, one file per method, and their settings in `presets`.

A method is a frozen dataclass that is called as `core.Explainer` says.
"""

from cf_utils.explainers.shared.construction import truncate_at_tau
from cf_utils.explainers.shared.prototypes import average_by_class, mean_logits

__all__ = ["average_by_class", "mean_logits", "truncate_at_tau"]
