"""One recipe a shipped checkpoint: `python -m cf_utils.recipes NAME --data DIR` re-makes it and writes its card."""

from cf_utils.recipes import credit, diffusion, digits, people, readers, renders, reviews  # noqa: F401 (they register their recipes)
from cf_utils.recipes.base import EMBEDDED, RECIPES, make, recipe  # noqa: F401
