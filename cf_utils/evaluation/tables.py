"""The columns of ACE's Tables 1 to 4 for one set of counterfactuals.

Source: Jeanneret et al., ACE (CVPR 2023). A column has its official name only with the published
network; if its file is missing, the note says where to get it. Columns with embedded encoders are
named `*_embedded`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from cf_utils.core import Counterfactuals, files
from cf_utils.evaluation.metrics import attributes, features, identity, image
from cf_utils.evaluation.metrics.decision import validity
from cf_utils.evaluation.metrics.transition import cout
from cf_utils.models import encoders
from cf_utils.models.published_oracles import PublishedOracle

FACES = ("fid", "sfid", "fva", "fs", "mnac", "cd", "cout", "fr")  # Tables 1 and 2, and flip rate
SCENES = ("fid", "sfid", "s3", "cout", "fr")  # Tables 3 and 4
Row = tuple[float, int, str]  # value, n, note
Work = tuple[tuple[str, ...], Callable[[], dict[str, Row]]]  # columns, and what computes them


def ace_table(
    cfs: Counterfactuals,
    classifier: nn.Module,
    columns: tuple[str, ...] = FACES,
    *,
    labels: Tensor | None = None,
    oracle: nn.Module | str | None = None,
    training: Tensor | None = None,
    attribute: int | None = None,
    face: nn.Module | None = None,
    judge: nn.Module | None = None,
    embedded: bool = True,
    official_cout: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Compute ACE's columns; one row per column with `value` (NaN if unavailable), `n` and `note`.

    Items that were already classified as the target are left out; the note of FR counts them. Each
    column uses the same items as the official code:

    * FID: all queries against the valid counterfactuals (sFID: the same on halves).
    * FVA, FS, MNAC, CD: the valid counterfactuals.
    * COUT, S3: the queries that the classifier gets right, valid or not.
    * FR: all.

    FVA and FR are in [0, 1]; the paper prints per cent. Deviation: the official figures are
    computed from 8-bit image files, these from float images.

    Args:
        cfs: queries and counterfactuals (B, 3, H, W) in [0, 1].
        columns: some of FACES and SCENES.
        labels: (B,) int64, true classes; without them COUT and S3 use all queries.
        oracle: attribute oracle, or the published one, "celeba" or "celebahq".
        training: (A,), `attributes.correlations` of the training labels.
        attribute: column of the attribute that was to flip.
        face: identity encoder with a `threshold`, for fva_embedded and fs_embedded.
        judge: independent classifier of the same classes, for cout_judge.
        embedded: add the columns with AlexNet features.
        official_cout: see `cout`.
    """
    if unknown := set(columns) - {*FACES, *SCENES}:
        known = tuple(dict.fromkeys(FACES + SCENES))
        raise ValueError(f"columns: got {sorted(unknown)}, expected some of {known}")
    if labels is not None and labels.shape != (len(cfs),):
        raise ValueError(f"labels: got {tuple(labels.shape)}, expected ({len(cfs)},)")
    to_explain = (cfs.source != cfs.target).cpu()
    labels = labels if labels is None else labels[to_explain.to(labels.device)]
    make = _Columns(cfs.select(to_explain), classifier, labels, official_cout, seed, device)
    official = make.official(oracle, training, attribute, already=int((~to_explain).sum()))
    works = [(names, work) for names, work in official if set(names) & set(columns)]
    rows: dict[str, Row] = {}
    for names, work in works + make.embedded(judge, face, embedded):
        rows |= compute_columns(names, work)
    order = [*columns, *(name for name in rows if name not in {*FACES, *SCENES})]
    return pd.DataFrame.from_dict(
        {name: rows[name] for name in order}, orient="index", columns=["value", "n", "note"]
    )


def compute_columns(names: tuple[str, ...], work: Callable[[], dict[str, Row]]) -> dict[str, Row]:
    """Compute columns; where an input is missing, or too few items are valid, the note says so."""
    try:
        found = work()
    except (FileNotFoundError, ValueError) as e:
        note = str(e).replace(f"{files.ROOT}{os.sep}", "")  # published tables name no local path
        found = {name: (float("nan"), 0, note) for name in names}
    absent = [name for name in names if name not in found]
    return {name: (float("nan"), 0, f"see {name}_embedded") for name in absent} | found


@dataclass(frozen=True)
class _Columns:
    """Computes columns from counterfactuals whose query was not classified as the target."""

    cfs: Counterfactuals
    classifier: nn.Module
    labels: Tensor | None
    official_cout: bool
    seed: int
    device: torch.device | str

    def official(
        self,
        oracle: nn.Module | str | None,
        training: Tensor | None,
        attribute: int | None,
        already: int,
    ) -> list[Work]:
        """Columns with the published networks."""
        note = f"{already} were the target already" if already else ""
        return [
            (("fid", "sfid"), lambda: self._realism("inception")),
            (("fva", "fs"), lambda: self._person(encoders.load("vggface2", self.device))),
            (("mnac", "cd"), lambda: self._attributes(oracle, training, attribute)),
            (("s3",), lambda: self._scene("simsiam")),
            (("cout",), lambda: {"cout": self._transition(self.classifier)}),
            (("fr",), lambda: {"fr": (validity(self.cfs), len(self.cfs), note)}),
        ]

    def embedded(
        self,
        judge: nn.Module | None,
        face: nn.Module | None,
        alexnet: bool,
    ) -> list[Work]:
        """Columns with networks that ship with the project."""
        works: list[Work] = []
        if judge is not None:
            works.append((("cout_judge",), lambda: {"cout_judge": self._transition(judge)}))
        if face is not None:
            works.append((("fva_embedded", "fs_embedded"), lambda: self._person(face)))
        if alexnet:
            works.append((("fid_embedded", "sfid_embedded"), lambda: self._realism("alexnet")))
            works.append((("s3_embedded",), lambda: self._scene("alexnet")))
        return works

    def _valid(self) -> Counterfactuals:
        return self.cfs.select(self.cfs.valid)

    def _right(self) -> tuple[Counterfactuals, str]:
        """Items whose query the classifier gets right, and a note if that is unknown."""
        source = self.cfs.source
        if self.labels is None:
            return self.cfs.select(source >= 0), "on all queries: no labels"
        return self.cfs.select(source == self.labels.to(source.device)), ""

    def _transition(self, model: nn.Module) -> Row:
        cfs, note = self._right()
        values = cout(
            model,
            cfs.query,
            cfs.counterfactual,
            cfs.source,
            cfs.target,
            official=self.official_cout,
        )
        return values.nanmean().item(), int(values.isfinite().sum()), note

    def _realism(self, name: str) -> dict[str, Row]:
        cfs, encoder = self.cfs, encoders.load(name, self.device)
        real = features.extract(encoder, cfs.query)
        fake = features.extract(encoder, cfs.counterfactual)
        whole = image.fid(real, fake.take(cfs.valid))
        split = image.sfid(real, fake, cfs.valid, seed=self.seed)
        fid, sfid = real.name("fid"), real.name("sfid")
        biased = f"; biased: under {2 * real.values.shape[1]} images"
        of_whole = f"against {len(cfs)} queries" + (biased if whole["biased"] else "")
        of_split = (
            f"against the other half's {split['n_real']:g} queries, mean of ten splits both ways; "
            f"no change scores {split[sfid + '_floor']:.4g}" + (biased if split["biased"] else "")
        )
        return {
            fid: (whole[fid], int(whole["n_fake"]), of_whole),
            sfid: (split[sfid], round(split["n_fake"]), of_split),
        }

    def _person(self, encoder: nn.Module) -> dict[str, Row]:
        cfs = self._valid()
        found = identity.fva_fs(encoder, cfs.query, cfs.counterfactual, seed=self.seed)
        return _beside_random(found, len(cfs))

    def _scene(self, name: str) -> dict[str, Row]:
        encoder, (cfs, note) = encoders.load(name, self.device), self._right()
        found = identity.s3(encoder, cfs.query, cfs.counterfactual, self.seed)
        return _beside_random(found, len(cfs), note)

    def _attributes(
        self, oracle: nn.Module | str | None, training: Tensor | None, attribute: int | None
    ) -> dict[str, Row]:
        if oracle is None:
            raise ValueError("oracle: got None; no attribute oracle was given")
        model = PublishedOracle(oracle).to(self.device) if isinstance(oracle, str) else oracle
        cfs = self._valid()
        if not len(cfs):
            raise ValueError("cfs: no counterfactual is valid")
        before = attributes.read_attributes(model, cfs.query)
        after = attributes.read_attributes(model, cfs.counterfactual)
        mnac = attributes.attributes_changed(before, after).double().mean().item()
        note = ""
        if len(cfs) < 2:
            cd, of_cd, n_cd = float("nan"), "a correlation needs two valid counterfactuals", 0
        elif training is None or attribute is None:
            of_cd = "needs the correlations of the attributes in the data's train split"
            cd, n_cd = float("nan"), 0
        else:
            cd = attributes.correlation_difference(before, after, training, attribute)
            of_cd, n_cd = "", len(cfs)
            if oracle == "celebahq":
                note = "the paper's value is for images that its script normalises twice"
        end = "" if "mnac" in getattr(model, "official_for", ()) else "_embedded"
        return {f"mnac{end}": (mnac, len(cfs), note), f"cd{end}": (cd, n_cd, of_cd)}


def _beside_random(found: dict[str, float | int], n: int, note: str = "") -> dict[str, Row]:
    """Rows of similarities, each with the value of random pairs in its note."""
    rows = {}
    for name, value in found.items():
        if name + "_random" in found:
            random = f"random pairs {found[name + '_random']:.4g}"
            rows[name] = (value, n, "; ".join(filter(None, [random, note])))
    return rows
