"""One recipe a shipped checkpoint: `python -m cf_utils.recipes NAME --data DIR` re-makes it and writes its card."""

from cf_utils.recipes import (  # noqa: F401 (they register their recipes)
    credit,
    diffusion,
    digits,
    people,
    photographs,
    readers,
    renders,
    reviews,
)
from cf_utils.recipes.base import EMBEDDED, RECIPES, make, recipe  # noqa: F401
