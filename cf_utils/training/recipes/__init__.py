"""One recipe per shipped checkpoint. `cf train NAME` trains it again and writes its card."""

from cf_utils.training.recipes import (  # noqa: F401 (importing them registers their recipes)
    credit,
    diffusion,
    digits,
    people,
    photographs,
    readers,
    renders,
    reviews,
)
from cf_utils.training.recipes.base import EMBEDDED, RECIPES, make, recipe  # noqa: F401
