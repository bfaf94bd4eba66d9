"""Progressions that play without a kernel: strips of images for a range input on a page.

`docs/_static/progression.js` turns the figure into a player. Without JavaScript, the strips are
shown as they are. A notebook gets a player by an entry in SOURCES.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image
from torch import Tensor

N_ITEMS = 6  # of a player
QUALITY = 88  # of WebP
FOLDER = "progressions"  # in the site


@dataclass(frozen=True, eq=False)
class Strips:
    """Explanations of B items for K wanted outputs of the classifier, the query in front."""

    item: str  # what an item is, such as "face"
    label: str  # of class 1
    images: Tensor  # (B, 1 + K, C, H, W) in [0, 1]
    values: Tensor  # (B, 1 + K), the classifier's probability of the label


def from_exaggeration(world: str, label: str, item: str) -> Strips:
    """Return the progressions of a world's first test renders, by the shipped GAN."""
    from cf_utils.harness import exaggeration_cases  # loads diffusers: only here

    case = exaggeration_cases.rendered_case(world, label, N_ITEMS, 1)
    explain = case.methods(0.9, 0)["exaggeration"]
    shown = explain.progress(case.classifier, case.data.x)
    return Strips(
        item,
        label,
        torch.cat([shown.query[:, None], shown.images], 1),
        torch.cat([shown.source[:, None].cpu(), shown.actual], 1),
    )


SOURCES: dict[str, Callable[[], Strips]] = {
    "04_exaggeration_faces": partial(from_exaggeration, "faces", "smile", "face"),
    "05_exaggeration_radiographs": partial(
        from_exaggeration, "radiographs", "cardiomegaly", "radiograph"
    ),
}


def make(name: str) -> tuple[dict[str, bytes], str]:
    """Return the strips of a notebook by their place in the site, and the HTML of its player.

    Returns ({}, '') for a notebook that has no entry in SOURCES. Addresses in the HTML start at the
    notebook's page.
    """
    if name not in SOURCES:
        return {}, ""
    strips, folder = SOURCES[name](), f"{FOLDER}/{name}"
    contents = {f"{folder}/{i}.webp": draw(images) for i, images in enumerate(strips.images)}
    return contents, player(strips, f"../{folder}")


def draw(images: Tensor) -> bytes:
    """Return images (N, C, H, W) in [0, 1], side by side, as WebP."""
    row = torch.cat(list(images), 2)  # (C, H, N * W)
    pixels = (255 * row.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.convert("RGB").save(buffer, "WEBP", quality=QUALITY, method=6)
    return buffer.getvalue()


def player(strips: Strips, place: str) -> str:
    """Return the HTML of a player whose strips lie at `place`, in one line for Markdown."""
    item, label = html.escape(strips.item), html.escape(strips.label)
    height, width = strips.images.shape[3:]
    n = strips.images.shape[1]
    rows = []
    for i, values in enumerate(strips.values.tolist()):
        numbers = " ".join(f"{value:.2f}" for value in values)
        alt = (
            f"{strips.item.capitalize()} {i + 1}: the query, then {n - 1} explanations with rising "
            f"probability of {strips.label} asked for; the classifier's answers: {numbers}"
        )
        rows.append(
            f'<img src="{place}/{i}.webp" width="{n * width}" height="{height}" '
            f'alt="{html.escape(alt)}" data-values="{numbers}" loading="lazy">'
        )
    caption = (
        f"Progressions of {len(rows)} queries, in test order. Each strip starts with the query. "
        f"Then follow the explanations for rising probability of {label}."
    )
    return (
        f'<figure class="cf-progressions" data-item="{item}" data-label="{label}">{"".join(rows)}'
        f"<figcaption>{caption}</figcaption></figure>"
    )
