"""One recipe per shipped checkpoint; `cf train NAME` trains it again and writes its model card."""

from cf_utils.training.recipes import (  # noqa: F401 (importing a module registers its recipes)
    attributes,
    credit,
    diffae,
    diffusion,
    digit_autoencoders,
    digit_judges,
    digits,
    exaggeration,
    exaggeration_official,
    factor_oracles,
    identity,
    lung_ct,
    multi_label,
    osic,
    photographs,
    radiographs,
    reviews,
    segmentation,
    vae,
    world_classifiers,
)
from cf_utils.training.recipes.base import EMBEDDED, RECIPES, Trained, make, recipe
from cf_utils.training.recipes.calibration import calibrate_again
from cf_utils.training.recipes.factor_oracles import fine_tune_again

__all__ = ["EMBEDDED", "RECIPES", "Trained", "calibrate_again", "fine_tune_again", "make", "recipe"]
