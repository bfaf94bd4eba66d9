"""The columns of ACE's Tables 1 to 3 for one set of counterfactuals: each a value, or the reason why there is none.

Source: Jeanneret et al., ACE (CVPR 2023). A column keeps its official name only through the published network; where that is
missing the note names the file, its place and its source. Columns through embedded encoders stand below as `*_embedded`.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor, nn

from cf_utils.core import Counterfactuals, files
from cf_utils.evaluation.metrics import attributes, features, identity, image
from cf_utils.evaluation.metrics.decision import validity
from cf_utils.evaluation.metrics.transition import cout
from cf_utils.models import encoders
from cf_utils.models.published_oracles import PublishedOracle

FACES = (
    "fid",
    "sfid",
    "fva",
    "fs",
    "mnac",
    "cd",
    "cout",
    "fr",
)  # Tables 1 and 2, and the flip rate of the text
SCENES = ("fid", "sfid", "s3", "cout", "fr")  # Table 3, and 4 on ImageNet
Row = tuple[float, int, str]


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
    """One row a column: its name as index, `value` (NaN where there is none), `n`, `note`.

    cfs: queries and counterfactuals in [0, 1]; items that were the target already count nowhere, and the note of FR says how
    many. The official figures are of files of 8 bits, to which counterfactuals were cut; here they are taken as they are found.
    Sets as in the official code: FID all queries against valid counterfactuals; FVA, FS, MNAC and CD the valid ones; COUT and S3
    the queries that the classifier gets right, valid or not; FR all.

    labels (B,) int64: the true classes; without them COUT and S3 are taken on all queries, and the note says so.
    oracle: of attributes, or the published "celeba" or "celebahq"; training (A,): `attributes.correlations` of training labels;
    attribute: the one asked for. face: identity encoder for fva_embedded and fs_embedded. judge: independent classifier of the
    same classes, for cout_judge. embedded: AlexNet's columns too. FVA and FR are shares of 1 where the paper has percentages.
    """
    if unknown := set(columns) - {*FACES, *SCENES}:
        raise ValueError(
            f"columns: got {sorted(unknown)}, expected some of {tuple(dict.fromkeys(FACES + SCENES))}"
        )
    if labels is not None and labels.shape != (len(cfs),):
        raise ValueError(f"labels: got {tuple(labels.shape)}, expected ({len(cfs)},)")
    asked = (cfs.source != cfs.target).cpu()
    already = f"{int((~asked).sum())} were the target already" if not asked.all() else ""
    cfs, labels = cfs.select(asked), labels if labels is None else labels[asked.to(labels.device)]
    valid = cfs.select(cfs.valid)
    right = cfs.select(
        cfs.source >= 0 if labels is None else cfs.source == labels.to(cfs.source.device)
    )
    whom = "" if labels is not None else "on all queries: no labels"

    def transition(model: nn.Module) -> Row:
        values = cout(
            model,
            right.query,
            right.counterfactual,
            right.source,
            right.target,
            official=official_cout,
        )
        return values.nanmean().item(), int(values.isfinite().sum()), whom

    works: list[tuple[tuple[str, ...], Callable[[], dict[str, Row]]]] = [
        (("fid", "sfid"), lambda: _realism(encoders.load("inception", device), cfs, seed)),
        (("fva", "fs"), lambda: _person(encoders.load("vggface2", device), valid, seed)),
        (("mnac", "cd"), lambda: _attributes(oracle, valid, training, attribute, device)),
        (("s3",), lambda: _scene(encoders.load("simsiam", device), right, whom, seed)),
        (("cout",), lambda: {"cout": transition(classifier)}),
        (("fr",), lambda: {"fr": (validity(cfs), len(cfs), already)}),
    ]
    works = [(names, work) for names, work in works if set(names) & set(columns)]
    if judge is not None:
        works.append((("cout_judge",), lambda: {"cout_judge": transition(judge)}))
    if face is not None:
        works.append((("fva_embedded", "fs_embedded"), lambda: _person(face, valid, seed)))
    if embedded:
        works.append(
            (
                ("fid_embedded", "sfid_embedded"),
                lambda: _realism(encoders.load("alexnet", device), cfs, seed),
            )
        )
        works.append(
            (("s3_embedded",), lambda: _scene(encoders.load("alexnet", device), right, whom, seed))
        )
    rows: dict[str, Row] = {}
    for names, work in works:
        try:
            found = work()
        except (
            FileNotFoundError,
            ValueError,
        ) as e:  # a file is missing or wrong, or too few items are valid
            found = {
                name: (float("nan"), 0, str(e).replace(f"{files.ROOT}{os.sep}", ""))
                for name in names
            }  # no machine's path
        rows |= {
            name: (float("nan"), 0, f"see {name}_embedded") for name in names if name not in found
        } | found
    order = [*columns, *(name for name in rows if name not in {*FACES, *SCENES})]
    return pd.DataFrame.from_dict(
        {name: rows[name] for name in order}, orient="index", columns=["value", "n", "note"]
    )


def _realism(encoder: nn.Module, cfs: Counterfactuals, seed: int) -> dict[str, Row]:
    real, fake = features.extract(encoder, cfs.query), features.extract(encoder, cfs.counterfactual)
    against, few = f"against {len(cfs)} queries", f"biased: under {2 * real.values.shape[1]} images"
    whole, split = (
        image.fid(real, fake.take(cfs.valid)),
        image.sfid(real, fake, cfs.valid, seed=seed),
    )
    fid, sfid = real.name("fid"), real.name("sfid")
    return {
        fid: (whole[fid], whole["n_fake"], against + (f"; {few}" if whole["biased"] else "")),
        sfid: (
            split[sfid],
            round(split["n_fake"]),
            f"against the other half's {split['n_real']:g} queries, "
            f"mean of ten splits both ways; no change scores {split[sfid + '_floor']:.4g}"
            + (f"; {few}" if split["biased"] else ""),
        ),
    }


def _person(encoder: nn.Module, cfs: Counterfactuals, seed: int) -> dict[str, Row]:
    found = identity.fva_fs(encoder, cfs.query, cfs.counterfactual, seed=seed)
    return {
        k: (v, len(cfs), f"random pairs {found[k + '_random']:.4g}")
        for k, v in found.items()
        if k + "_random" in found
    }


def _scene(encoder: nn.Module, cfs: Counterfactuals, whom: str, seed: int) -> dict[str, Row]:
    found = identity.s3(encoder, cfs.query, cfs.counterfactual, seed)
    return {
        k: (
            v,
            len(cfs),
            "; ".join(filter(None, [f"random pairs {found[k + '_random']:.4g}", whom])),
        )
        for k, v in found.items()
        if k + "_random" in found
    }


def _attributes(
    oracle: nn.Module | str | None,
    cfs: Counterfactuals,
    training: Tensor | None,
    attribute: int | None,
    device: torch.device | str,
) -> dict[str, Row]:
    if oracle is None:
        raise ValueError("no attribute oracle was given")
    model = PublishedOracle(oracle).to(device) if isinstance(oracle, str) else oracle
    if not len(cfs):
        raise ValueError("no counterfactual is valid")
    end = "" if "mnac" in getattr(model, "official_for", ()) else "_embedded"
    before, after = (
        attributes.readings(model, cfs.query),
        attributes.readings(model, cfs.counterfactual),
    )
    mnac = attributes.attributes_changed(before, after).double().mean().item()
    if training is None or attribute is None or len(cfs) < 2:
        why = (
            "needs two valid counterfactuals: one has no correlation"
            if len(cfs) < 2
            else "needs the attributes of the data's train split: how they go together there is what CD compares with"
        )
        return {f"mnac{end}": (mnac, len(cfs), ""), f"cd{end}": (float("nan"), 0, why)}
    cd = attributes.correlation_difference(before, after, training, attribute)
    twice = (
        "the paper's is of images that its script normalises twice" if oracle == "celebahq" else ""
    )
    return {f"mnac{end}": (mnac, len(cfs), twice), f"cd{end}": (cd, len(cfs), "")}
