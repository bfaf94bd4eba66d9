"""Settings of each method for each data set, with their provenance.

`presets.get("ace", "celeba").build(prior=prior, seed=1)` returns a ready explainer. There is no
fallback: a combination that is not listed is an error.

Provenance begins with its kind:
* `paper`: printed in the paper, or the class's defaults, which are the paper's.
* `official script`: from the authors' released code.
* `tuned`: chosen by the tuning rule; the record is named.
* `by hand`: chosen by us.

The variant None is the paper's setting or, where the paper gives none, our simplest choice.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cf_utils.core import Explainer

REQUIRED = ...  # value of a setting without a default: pass it to `get` or `build`

CLASSES = {  # method -> (module, class); imported on demand, some modules load slowly
    "gradual": ("gradual", "GradualConstruction"),
    "gradual_words": ("gradual_words", "GradualWords"),
    "wachter": ("wachter", "Wachter"),
    "cem": ("cem", "CEM"),
    "growing_spheres": ("growing_spheres", "GrowingSpheres"),
    "lore": ("lore", "LORE"),
    "abele": ("abele", "ABELE"),
    "ace": ("ace", "ACE"),
    "dime": ("dime", "DiME"),
    "fastdime": ("dime", "DiME"),
    "xgem": ("xgem", "XGEM"),
    "latent_shift": ("latent_shift", "LatentShift"),
    "exaggeration": ("exaggeration", "Exaggeration"),
    "diffexplainer": ("diffexplainer", "DiffExplainer"),
}


@dataclass(frozen=True)
class Preset:
    """Settings of one method for one data set. Fields that are not listed keep their defaults."""

    method: str
    dataset: str
    variant: str | None
    settings: Mapping[str, Any]
    provenance: str

    @property
    def explainer(self) -> type[Explainer]:
        """The class of the method."""
        module, name = CLASSES[self.method]
        return getattr(importlib.import_module(f"cf_utils.explainers.{module}"), name)

    def build(self, *parts: Any, **changes: Any) -> Explainer:
        """Return the explainer.

        Args:
            parts: what the class takes by position (prototypes, training rows, an autoencoder).
            changes: what it takes by name (a prior, `seed`, `tau`, ...); they override `settings`.

        Raises ValueError, naming the part, if a required one is missing.
        """
        settings = {**self.settings, **changes}
        if missing := [name for name, value in settings.items() if value is REQUIRED]:
            raise ValueError(
                f"{missing[0]}: missing; {self} needs it, pass it as build({missing[0]}=...)"
            )
        return self.explainer(*parts, **settings)

    def __str__(self) -> str:
        variant = "" if self.variant is None else f", {self.variant!r}"
        return f"preset ({self.method!r}, {self.dataset!r}{variant})"


def get(method: str, dataset: str, variant: str | None = None, **changes: Any) -> Preset:
    """Return the preset of a method for a data set, with some settings changed.

    Raises ValueError, listing the presets, if there is none for the arguments.
    """
    if method not in PRESETS:
        raise ValueError(f"method: got {method!r}, expected one of {tuple(PRESETS)}")
    if (dataset, variant) not in PRESETS[method]:
        known = ", ".join(map(str, PRESETS[method]))
        raise ValueError(
            f"dataset, variant: got {(dataset, variant)} for {method!r}, expected one of {known}"
        )
    provenance, settings = PRESETS[method][dataset, variant]
    return Preset(method, dataset, variant, settings | changes, provenance)


def available(method: str | None = None) -> tuple[Preset, ...]:
    """Return all presets, or those of one method."""
    return tuple(
        Preset(name, dataset, variant, settings, provenance)
        for name, entries in PRESETS.items()
        for (dataset, variant), (provenance, settings) in entries.items()
        if method in (None, name)
    )


Entry = tuple[str, dict[str, Any]]  # provenance, settings

TABLES = ("heloc", "uci_credit", "german_credit", "table")  # "table": any scaled table (B, F)


def _for_tables(variant: str | None, *entry: Any) -> dict[tuple[str, str | None], Any]:
    """Return the same (provenance, settings) for every table."""
    return {(name, variant): entry for name in TABLES}


DEFAULTS = "the class's defaults"
NO_BOUNDS = "values are free; with `bounds` give clamp=True, too"
DIGITS = {"clamp": True, "init": "uniform", "ranking": "each", "max_blocks": 16}
CREDIT = {"block": (1,), "tau": 0.5, "steps": 500, "bounds": None}
WACHTER_IMAGES = {"term": "log_odds", "steps": 60, "rounds": 8, "lam": 0.1}
WACHTER_IMAGES |= {"factor": 4.0, "lr": 0.05}
PROBING = {"constraints": REQUIRED, "init": "query", "ranking": "probe", "patience": 20}
CEM_TABLES = {"bounds": None, "steps": 100, "tries": 6}
SPHERES = {"bounds": None, "clamp": False}
FASTDIME = {"fast": True, "own_mask": True, "dilation": 5}
DIME_BDD = {"steps": 45, "refine": ("100", 5), "threshold": 0.05}
ACE_FACES = {"spacing": "33", "lam": 1e-6, "step": 2 / 255, "dilation": 7}
DIME_FACES = {"steps": 45, "dilation": 7}
VAE_IMAGES = ("faces", "radiographs", "celeba")
GAN_IMAGES = (*VAE_IMAGES, "chexpert")
XGEM = {"model": REQUIRED, "lam": 0.01}
SURVEY = {"model": REQUIRED, "lam": 0.003, "stop": False}
SHIFT = {"model": REQUIRED}
CODES = {"autoencoder": REQUIRED, "agent": REQUIRED}

PRESETS: dict[str, dict[tuple[str, str | None], Entry]] = {
    "gradual": {
        ("mnist", None): (f"paper: {DEFAULTS}", {}),
        ("mnist", "recommended"): ("by hand: values stay inside bounds", DIGITS),
        ("mnist", "early"): (
            "by hand: as recommended; a composition step ends once its loss has been flat",
            DIGITS | {"patience": 10},
        ),
        ("mnist", "official"): (
            "official script, for prototypes of 50 inputs per class; its total variation is a mean "
            "over 28 x 28 pixels with weight 4; pixels in [0, 1], as in the paper",
            {"lr": 0.01, "steps": 500, "term": "mean_abs", "eta": 4 / 784, "beta": 4.0}
            | {"init": "uniform", "restart": True},
        ),
        ("images", None): (
            "by hand: as on digits; `block` is a share of the image",
            DIGITS | {"patience": 10, "block": REQUIRED},
        ),
        **_for_tables(None, "by hand: as in the paper on HELOC and UCI credit", CREDIT),
        ("heloc", None): ("paper: one feature per block", CREDIT),
        ("uci_credit", None): ("paper: one feature per block", CREDIT),
        **_for_tables(
            "constrained",
            "by hand: each step changes the feature that alone raises the score most",
            CREDIT | PROBING,
        ),
    },
    "gradual_words": {
        ("imdb", None): (f"paper: {DEFAULTS}", {}),
        ("imdb", "recommended"): (
            "by hand: real words only, at most eight",
            {"compose": "vocabulary", "max_blocks": 8, "lam": 0.1},
        ),
    },
    "wachter": {
        ("mnist", None): (f"by hand: {DEFAULTS}; the paper gives no numbers", {}),
        ("mnist", "recommended"): ("by hand: log-odds and short rounds", WACHTER_IMAGES),
        ("images", None): ("by hand: as on digits", WACHTER_IMAGES),
        **_for_tables(  # mad: median absolute deviation per feature, or None
            None,
            f"by hand: log-odds and small steps; {NO_BOUNDS}",
            {"mad": REQUIRED, "bounds": None, "clamp": False, "term": "log_odds", "steps": 100}
            | {"rounds": 12, "lam": 0.3, "factor": 3.0, "lr": 0.02},
        ),
    },
    "cem": {
        ("mnist", None): (f"paper: {DEFAULTS}; needs an autoencoder", {}),
        ("mnist", "recommended"): (
            "by hand: fewer and shorter tries, less weight on the autoencoder's term",
            {"steps": 50, "tries": 5, "gamma": 10.0},
        ),
        ("images", None): ("by hand: no autoencoder", {"steps": 50, "tries": 5, "gamma": 0.0}),
        ("images", "autoencoder"): (
            "by hand: as for digits",
            {"steps": 50, "tries": 5, "gamma": 10.0, "autoencoder": REQUIRED},
        ),
        **_for_tables(None, "by hand: no autoencoder", CEM_TABLES | {"gamma": 0.0}),
        **_for_tables(
            "autoencoder",
            "by hand: with the autoencoder's term",
            CEM_TABLES | {"gamma": 10.0, "autoencoder": REQUIRED},
        ),
    },
    "growing_spheres": {
        **_for_tables(None, f"by hand: the paper gives no numbers; {NO_BOUNDS}", SPHERES),
        **_for_tables(
            "official",
            "official script, but the nearest enemy of all draws, as in the paper",
            SPHERES | {"n": 2000, "shrink": 10.0, "start": 0.1, "width": 0.18, "selection": "each"},
        ),
    },
    "lore": _for_tables(None, f"official script: {DEFAULTS}; the fitness is the paper's", {}),
    "abele": {("mnist", None): (f"by hand: {DEFAULTS}", {})},
    # ACE's lam is per item. For CelebA it is the script's value times the script's batch size, 3
    "ace": {
        ("celeba", None): (f"official script, 128 px: {DEFAULTS}", {}),
        ("celebahq", None): ("official script, 256 px", {"spacing": "25", "lam": 0.001}),
        ("bdd", None): (
            "official script, 256 x 512 px",
            {"spacing": "100", "lam": 0.001, "threshold": 0.05},
        ),
        ("imagenet", None): (
            "official script of 2025, 256 px; that of 2023: spacing 100, 20 steps, 25 iterations",
            {"spacing": "25", "iterations": 100, "lam": 0.001},
        ),
        ("faces", None): ("tuned: results/tuning/faces_smile_causal_ace.json", ACE_FACES),
        ("images", None): ("by hand: as on faces, not tuned", ACE_FACES),
        ("lung_ct", None): ("by hand: as on faces, not tuned", ACE_FACES),
        ("roads", None): (
            "by hand: in results/tuning/roads_action_causal_ace.json; the rule chose another",
            {"spacing": "50", "attack": "gd", "lam": 1e-6, "step": 0.3}
            | {"threshold": 0.05, "dilation": 7},
        ),
    },
    "dime": {
        ("celeba", None): (f"official script, 128 px: {DEFAULTS}", {}),
        ("celebahq", None): (
            "by hand: as on CelebA (ACE's authors raised the scales, by how much is not published)",
            {"refine": ("25", 5)},
        ),
        ("bdd", None): ("paper: that of ACE gives DiME 45 steps", DIME_BDD),
        ("faces", None): ("tuned: results/tuning/faces_smile_causal_dime.json", DIME_FACES),
        ("images", None): ("by hand: as on faces, not tuned", DIME_FACES),
        ("roads", None): ("by hand: as on BDD, not tuned", DIME_BDD),
    },
    "fastdime": {
        ("celeba", None): ("paper: 60 passes per scale, its own mask after 30", FASTDIME),
        ("celebahq", None): ("by hand: as on CelebA", FASTDIME),
        ("bdd", None): ("by hand: as on CelebA", FASTDIME),
        ("faces", None): (
            "tuned: results/tuning/faces_smile_causal_fastdime.json",
            DIME_FACES | {"fast": True},
        ),
        ("images", None): ("by hand: as on faces, not tuned", DIME_FACES | {"fast": True}),
        ("roads", None): ("by hand: as on BDD, not tuned", DIME_BDD | {"fast": True}),
    },
    # lam weighs the sum of |x - D(z)| over all values of an image
    "xgem": {
        **{
            (name, None): ("by hand: not tuned; the papers print no lambda", XGEM)
            for name in VAE_IMAGES
        },
        **{
            (name, "survey"): ("by hand: Eq. 1 of the survey, minimised to its end", SURVEY)
            for name in VAE_IMAGES
        },
    },
    "latent_shift": {
        (name, None): ("by hand: the paper searches the amount, too", SHIFT)
        for name in (*VAE_IMAGES, "lung_ct", "osic")
    },
    "diffexplainer": {
        ("lung_ct", None): ("by hand: not tuned; the paper chooses alpha by hand", CODES),
        ("osic", None): (
            "by hand: 100 steps; the paper states neither their number nor a limit",
            CODES | {"steps": 100},
        ),
    },
    # all other settings are those of the GAN's training, which its model card lists
    "exaggeration": {
        (name, None): ("paper: ten bins, a step of 0.1", {"gan": REQUIRED}) for name in GAN_IMAGES
    },
}
