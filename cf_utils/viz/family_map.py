"""A map of the families of methods, and which notebook shows them.

Source of the three generative families: Kirilenko et al., "Generative Models for Counterfactual
Explanations", HI-AI@KDD 2024. The first column is ours.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cf_utils.viz import plots

WIDTH, HEIGHT, STEP = 2.9, 0.66, 0.86  # of a column, of a box, from box to box
Method = tuple[str, str, str | None]  # what it does, an example, its notebooks

FAMILIES: tuple[tuple[str, str, tuple[Method, ...]], ...] = (  # heading, colour, methods
    (
        "no generator\nsearch on the input itself",
        "#f3e8cf",
        (
            ("gradient search", "Wachter 2017", "01"),
            ("sparse, near an autoencoder's range", "CEM 2018", "01"),
            ("few blocks, logits like the data's", "GRADUAL CONSTRUCTION", "01, 02, 03"),
        ),
    ),
    (
        "VAE\nencode, change z, decode",
        "#f6d5d1",
        (
            ("optimisation in latent space", "Wachter's loss on z", None),
            ("latent perturbations", "C-CHVAE, DiVE", None),
            ("modality-specific", "CLEAR (graphs)", None),
        ),
    ),
    (
        "GAN\ngenerate from query and target",
        "#d4ecd6",
        (
            ("conditional", "ExplainGAN", None),
            ("semantic decomposition", "STEEX", None),
            ("cycle consistency", "PROGRESSIVE EXAGGERATION", "04, 05"),
            ("StyleGAN modifications", "StylEx", None),
        ),
    ),
    (
        "diffusion\nadd noise, denoise with guidance",
        "#d3e2f4",
        (
            ("explicit guidance", "ACE, also DiME, DVCE", "06, 07, 08"),
            ("textual inversion", "dataset interfaces", None),
            ("code of a diffusion autoencoder*", "DIFFEXPLAINER", "09"),
        ),
    ),
)
ACROSS = (  # text, left edge, height above the bottom, width
    ("10  the generative families side by side", 3.1, 0.62, 9.1),
    ("11  benchmark: every method, every data set", 0.0, 0.0, 6.0),
    ("12  your own model and data", 6.2, 0.0, 6.0),
)
NOTE = "Capitals: the four papers of this workbench. Filled: has a notebook here. "
NOTE += "* not in the survey's taxonomy"


def draw_map() -> Figure:
    """Draw one column per family; a filled box is a method with a notebook."""
    fig, ax = plt.subplots(figsize=(12.0, 5.2), layout="constrained")
    for i, (heading, colour, methods) in enumerate(FAMILIES):
        left = 3.1 * i
        plots.draw_box(ax, left, 5.0, WIDTH, 0.75, heading, colour, size=11.5)
        for k, (what, example, notebooks) in enumerate(methods):
            y, fill = 4.1 - STEP * k, colour if notebooks else "#ffffff"
            text = f"{what}\n{example}"
            plots.draw_box(ax, left + 0.12, y, WIDTH - 0.24, HEIGHT, text, fill, size=9.5)
            if notebooks:
                _write_number(ax, left + 2.76, y + 0.7, notebooks)
    for text, left, y, width in ACROSS:
        plots.draw_box(ax, left, y, width, 0.42, text, "#e6e6e6", size=10.5)
    ax.set(xlim=(-0.15, 12.4), ylim=(-0.35, 5.9))
    ax.axis("off")
    ax.text(0, -0.28, NOTE, fontsize=9.5)
    return fig


def _write_number(ax: Axes, x: float, y: float, notebooks: str) -> None:
    box = {"boxstyle": "round,pad=0.2", "fc": "#34495e", "ec": "none"}
    style = {"ha": "right", "va": "center", "fontsize": 9, "weight": "bold", "color": "white"}
    ax.text(x, y, f"notebook {notebooks}", bbox=box, **style)
