"""Chest CT with known factors: four slices per patient, drawn on the slices of a genuine scan.

An image has one channel per slice, from the aortic arch to the base of the lungs. Values are HU in
the lung window, -1000 to 200, mapped to [0, 1]. All factors lie in [0, 1]. Vessels, fissures and
body are those of one patient; persons differ by a deformation, by habitus, and by the slices.

`extent` sets the share of the lung that is fibrotic, whatever the other factors are. Death within
a year is drawn from it, see `mortality_probability`. The variants `site_a` (also `independent`) and
`site_b` are two hospitals, which differ in kernel, noise and extent of the disease.

The default size is 96 pixels of 2.7 mm: lines of 3 mm are visible, and networks for four slices
train and explain in half the time that 128 pixels take.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch
from torch import Tensor

from cf_utils.worlds.draw import grid, mix, ramp, step
from cf_utils.worlds.factors import Factor, Factors, interpolate
from cf_utils.worlds.graph import Graph
from cf_utils.worlds.lung_ct_scan import LEVELS, SLICES, UNIT, build_table, look_up
from cf_utils.worlds.lung_ct_tissue import add_emphysema, add_fibrosis, set_airways
from cf_utils.worlds.world import Label, World

LOW, HIGH = -1000.0, 200.0  # HU, the lung window
LEAST_CHANGE = 30.0  # HU, of a voxel that counts as diseased
RISK = (0.02, 0.98)  # smallest and largest probability of death within a year
FACTORS = (
    Factor("extent", "cause", quantiles=((0, 0), (0.30, 0.05), (0.36, 0.20), (1, 1))),
    Factor("emphysema", "cause", quantiles=((0, 0), (0.45, 0.35), (0.55, 0.65), (1, 1))),
    Factor("airway", "cause", quantiles=((0, 0), (0.45, 0.35), (0.55, 0.65), (1, 1))),
    *(Factor(name) for name in ("side", "zone", "depth")),
    *(
        Factor(name, "identity")
        for name in (
            "habitus",
            "chest_width",
            "chest_depth",
            "taper",
            "roundness",
            "asymmetry",
            "bend",
            "slant",
        )
    ),
    *(
        Factor(name)
        for name in ("inspiration", "contrast", "level", "tilt", "shift_x", "shift_y", "zoom")
    ),
    Factor("kernel", quantiles=((0, 0), (1, 0.65))),
    Factor("noise", quantiles=((0, 0), (1, 0.6))),
)
SITE_B = {  # quantiles of the factors whose distribution is another one there
    "extent": ((0, 0), (0.50, 0.05), (0.56, 0.20), (1, 1)),
    "kernel": ((0, 0.5), (1, 1)),
    "noise": ((0, 0.4), (1, 1)),
}
VARIANTS = {
    "independent": {},
    "site_a": {},
    "site_b": {},
    "correlated": {  # roughly as in patients
        "airway": (("extent", 0.5),),
        "zone": (("extent", 0.3),),
        "inspiration": (("extent", -0.4), ("emphysema", 0.4)),
    },
    # a sharp kernel is chosen for patients with much fibrosis: a shortcut
    "confounded": {"kernel": (("extent", 0.995),)},
    "mixed": {"kernel": (("extent", 0.8),)},
}


def mortality_probability(factors: Factors) -> Tensor:
    """Return the probability (N,) of death within a year: a smooth step of the extent.

    It is the Bayes-optimal score of the label `mortality`.
    """
    return mix(*RISK, step((factors["extent"] - 0.1) / 0.8))


def draw_mortality(factors: Factors) -> Tensor:
    """Return who dies within a year, bool (N,). Each patient keeps one draw when factors move."""
    return factors.stream("mortality", (1,))[:, 0] < mortality_probability(factors)


LABELS = (
    Label(
        "mortality",
        ("survives", "dies within a year"),
        rule=draw_mortality,
        neutral=(("extent", 0.5),),
    ),
    Label("emphysema", ("no emphysema", "emphysema"), "emphysema"),
    Label("fibrosis", ("no fibrosis", "fibrosis"), "extent", 0.125),
    Label("airways", ("normal airways", "dilated airways"), "airway"),
)


def place_patient(factors: Factors, height: int, width: int) -> SimpleNamespace:
    """Return the namespace p: factors (N, 1, 1, 1), and positions x, y (N, 1, H, W) in the scan.

    plane: index (N, L) of the scan's slices. height: 1 for the uppermost slice, 0 for the lowest
    one, (1, L, 1, 1).
    """
    p = SimpleNamespace(**{k: factors[k][:, None, None, None] for k in factors.world.names})
    x, y, p.px = grid(height, width)
    p.x, p.y = to_scan(p, x[None], y[None])
    jitter = factors.stream("level", (len(LEVELS),))
    at = (SLICES * (0.6 * factors["level"][:, None] + 0.4 * jitter)).floor().long()
    p.plane = at.clamp(0, SLICES - 1) + SLICES * torch.arange(len(LEVELS))
    p.height = torch.linspace(1, 0, len(LEVELS)).view(1, -1, 1, 1)
    return p


def to_scan(p: SimpleNamespace, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Map pixels to the scan: undo pose, size and build of a patient, then the fat under the skin.

    Fat is what lies outside an ellipse around the ribs; habitus makes it thick.
    """
    turn, size = 0.10 * (2 * p.tilt - 1), mix(0.90, 1.04, p.zoom)
    x, y = x - 0.10 * (2 * p.shift_x - 1), y - 0.10 * (2 * p.shift_y - 1)
    x, y = (x + turn * y) / size, (y - turn * x) / size
    x, y = x / mix(0.92, 1.06, p.chest_width), y / mix(0.90, 1.08, p.chest_depth)
    s, t = x.clamp(-1.3, 1.3), y.clamp(-1.3, 1.3)
    dx = 0.10 * (2 * p.taper - 1) * s * t + 0.12 * (2 * p.roundness - 1) * s * (t * t - 0.4)
    dx = dx + 0.07 * (2 * p.asymmetry - 1) * (s * s - 0.4) + 0.07 * (2 * p.bend - 1) * (t * t - 0.4)
    dy = 0.10 * (2 * p.slant - 1) * s * (1 - 0.4 * s * s)
    x, y = x + dx, y + dy
    u, v = x / 1.02, y / 0.88
    away = (u * u + v * v).sqrt()
    beyond = (away - 1).clamp(min=0)
    factor = (away - beyond + beyond / mix(0.6, 1.7, p.habitus)) / away.clamp(min=1e-3)
    return x * factor, y * factor


def take_lung(p: SimpleNamespace, tissue: Tensor, pleura: Tensor) -> SimpleNamespace:
    """Return the namespace q of `lung_ct_tissue`: the pixels that show lung, and what is there.

    at: their positions in a flat (N, L, H, W). patient, slice: index of each pixel's patient and
    slice. inner: coverage of the lungs. air: share of air of a voxel. every: whether a pixel
    belongs to each second row and column.
    """
    levels, height, width = pleura.shape[1:]
    at = (pleura > -1).flatten().nonzero()[:, 0]
    q = SimpleNamespace(at=at, levels=levels, slice=at // (height * width))
    q.patient, place = q.slice // levels, at % (height * width)
    for name in ("extent", "emphysema", "inspiration", "side", "zone", "depth"):
        setattr(q, name, getattr(p, name).flatten()[q.patient])
    q.x, q.y = (t.flatten(1).flatten()[q.patient * (height * width) + place] for t in (p.x, p.y))
    q.every = (place // width % 2 == 0) & (place % 2 == 0)
    q.height = p.height.flatten()[q.slice % levels]
    q.pleura, hu = pleura.flatten()[at], tissue.flatten()[at]
    q.inner, q.air = ramp(q.pleura, -1.0, 1.5), (hu * -0.00125).clamp(0, 1)
    return q


def compose(p: SimpleNamespace, factors: Factors) -> tuple[Tensor, Tensor]:
    """Return a patient without and with fibrosis, in HU before the scanner's kernel."""
    tissue, pleura, lumen = look_up(
        build_table(p.x.shape[2]), ("tissue", "pleura", "airway"), p.plane, p.x, p.y
    )
    q = take_lung(p, tissue, pleura)
    over = (tissue - 60).clamp(min=0)
    hu = (tissue - over + over * mix(0.0, 1.1, p.contrast)).flatten()
    part = hu[q.at] + q.inner * q.air * mix(90, -40, q.inspiration)
    hu[q.at] = add_emphysema(q, part, factors)
    near = (lumen < 8).flatten().nonzero()[:, 0]
    calibre = p.airway.flatten()[near // pleura[0].numel()]
    hu[near] = set_airways(hu[near], lumen.flatten()[near], calibre, UNIT * p.px)
    part = hu[q.at]
    q.air = (part * -0.00125).clamp(0, 1) * ramp(lumen.flatten()[q.at], 1.0, 4.0)
    diseased = hu.clone()
    diseased[q.at] = add_fibrosis(q, part, factors)
    return hu.view(tissue.shape), diseased.view(tissue.shape)


def scan(p: SimpleNamespace, hu: Tensor) -> Tensor:
    """Return images in [0, 1]: apply the kernel, from soft to sharp, and the lung window."""
    image = ((hu - LOW) / (HIGH - LOW)).clamp(-0.05, 1.4)
    wide = torch.nn.functional.pad(image, (1, 1, 1, 1), "replicate")
    rows = wide[..., :-2, :] + wide[..., 2:, :] + 2 * wide[..., 1:-1, :]
    blurred = (rows[..., :-2] + rows[..., 2:] + 2 * rows[..., 1:-1]) / 16
    return (image + mix(0.75, -0.45, p.kernel) * (blurred - image)).clamp_(0, 1)


def draw(factors: Factors, height: int, width: int) -> Tensor:
    """Draw slices (N, 4, height, width) without noise."""
    p = place_patient(factors, height, width)
    return scan(p, compose(p, factors)[1])


def render_change(factors: Factors, size: tuple[int, int] | None = None) -> Tensor:
    """Return what the fibrosis changes in each voxel, in HU (N, 4, H, W), without noise."""
    p = place_patient(factors, *(size or factors.world.size))
    healthy, diseased = compose(p, factors)
    return (HIGH - LOW) * (scan(p, diseased) - scan(p, healthy))


def render_masks(factors: Factors, size: tuple[int, int] | None = None) -> dict[str, Tensor]:
    """Return the true masks of the fibrosis, of the lungs and of the body, bool (N, 4, H, W) each.

    disease: voxels that the fibrosis changes by 30 HU or more.
    """
    height, width = size or factors.world.size
    p, table = place_patient(factors, height, width), build_table(height)
    pleura, skin = look_up(table, ("pleura", "skin"), p.plane, p.x, p.y)
    change = render_change(factors, size)
    return {"disease": change.abs() >= LEAST_CHANGE, "lungs": pleura > 0, "body": skin > 0}


def to_hu(x: Tensor) -> Tensor:
    """Convert images in [0, 1] to HU."""
    return LOW + (HIGH - LOW) * x


@dataclass(frozen=True, eq=False)
class Hospitals(World):
    """A world in which some factors are distributed otherwise at one of the sites."""

    def sample(
        self,
        n: int,
        split: str = "train",
        variant: str | Graph = "independent",
        seed: int = 0,
        start: int = 0,
    ) -> Factors:
        """Sample factors, see `World.sample`; those of `SITE_B` by its own quantiles there."""
        factors = super().sample(n, split, variant, seed, start)
        if variant != "site_b":
            return factors
        values = factors.values.clone()
        for name, quantiles in SITE_B.items():
            k = self.column(name)
            values[:, k] = interpolate(factors.draws[:, k], quantiles).float()
        return replace(factors, values=values)


WORLD = Hospitals(
    "lung_ct",
    FACTORS,
    LABELS,
    VARIANTS,
    draw,
    size=(96, 96),
    noise=("noise", 0.005, 0.028),
    channels=len(LEVELS),
)
