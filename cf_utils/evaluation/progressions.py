"""The tables of Progressive Exaggeration, each in one call.

Source: Singla et al. (ICLR 2020): Figs. 3 and 11, Tables 1, 2, 3 and 5, Figs. 4b, 4c and 7. Every
table has one row per figure with `value` (NaN if unavailable), `n` and `note`. Shares are in
[0, 1]; the paper prints per cent. A column has its official name only with the published network.

`Explanations` are the result of a method with a whole path, or the pair (query, progression) of
images (B, C, H, W) and (B, K, C, H, W). Column k of a progression is bin k of the response.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from cf_utils.core import Counterfactuals
from cf_utils.evaluation.metrics import closeness, features, fid_groups, response
from cf_utils.evaluation.metrics.closeness import as_rgb
from cf_utils.evaluation.metrics.decision import paired_difference
from cf_utils.evaluation.tables import Row, compute_columns
from cf_utils.models import encoders

Explanations = Counterfactuals | tuple[Tensor, Tensor]


def images_of(explanations: Explanations) -> tuple[Tensor, Tensor]:
    """Return queries (B, C, H, W) and progressions (B, K, C, H, W).

    Raises ValueError where the path of an item is missing or shorter than the others.
    """
    if not isinstance(explanations, Counterfactuals):
        query, progression = explanations
    elif explanations.path is None or explanations.path_len is None:
        raise ValueError("explanations: got a result without path, expected one with all bins")
    else:
        steps = explanations.path.shape[1]
        short = (explanations.path_len < steps).nonzero().flatten().tolist()
        if short:
            raise ValueError(
                f"explanations: items at {short[:5]} have no whole path of {steps} states (they "
                "were at the target already); select the others, or pass (query, progression)"
            )
        query, progression = explanations.query, explanations.path[:, 1:]
    closeness.check_progression(query, progression)
    return query, progression


def _frame(rows: Mapping[str, Row]) -> pd.DataFrame:
    return pd.DataFrame.from_dict(dict(rows), orient="index", columns=["value", "n", "note"])


def _mean(values: Tensor, note: str = "") -> Row:
    """Mean, number of values, and a note that counts the NaN that were left out."""
    absent = int(values.isnan().sum())
    left_out = f"{absent} without a value" if absent else ""
    note = "; ".join(filter(None, [note, left_out]))
    return values.nanmean().item(), values.numel() - absent, note


def compatibility_table(
    explanations: Explanations,
    classifier: nn.Module,
    judges: Mapping[str, nn.Module] | None = None,
    quantities: Mapping[str, tuple[Callable[[Tensor], Tensor], float]] | None = None,
    tolerance: float = 0.0,
) -> pd.DataFrame:
    """Expected against actual response: Figs. 3, 11 and 12 as numbers.

    Rows: rank_correlation, linear_correlation (over all pairs), rank_correlation_within,
    linear_correlation_within (mean over queries), monotone, response_error and
    response_error_bin_0, ... For each judge the same with `_<name>`.

    Args:
        classifier: the explained one; class 1 is the label.
        judges: independent classifiers of the same two classes, by name.
        quantities: functions images (N, C, H, W) -> (N,), such as an oracle's reading of the smile
            or the size of the heart, each with the tolerance of `response.rises`. Their rows are
            `<name>_rank_correlation_within` and `<name>_monotone`.
        tolerance: of `monotone`, in units of probability.
    """
    query, progression = images_of(explanations)
    bins = progression.shape[1]
    expected = response.expected_response(response.respond(classifier, query), bins)
    rows: dict[str, Row] = {}
    for end, model in {"": classifier, **{f"_{k}": v for k, v in (judges or {}).items()}}.items():
        rows |= _compatibility_rows(expected, response.respond(model, progression), tolerance, end)
    for name, (measure, ties) in (quantities or {}).items():
        values = measure(progression.flatten(0, 1)).cpu().view(-1, bins)
        within = response.correlation_within(expected, values)
        rows[f"{name}_rank_correlation_within"] = _mean(within, "mean over queries")
        rows[f"{name}_monotone"] = _mean(response.rises(values, ties), f"ties up to {ties:g}")
    return _frame(rows)


def _compatibility_rows(
    expected: Tensor, actual: Tensor, tolerance: float, end: str
) -> dict[str, Row]:
    n, bins = expected.shape
    rows: dict[str, Row] = {}
    for kind in ("rank", "linear"):
        over_all = response.correlation(expected, actual, kind)
        rows[f"{kind}_correlation{end}"] = over_all, n, f"over {n} x {bins} pairs"
        within = response.correlation_within(expected, actual, kind)
        rows[f"{kind}_correlation_within{end}"] = _mean(within, "mean over queries")
    rows[f"monotone{end}"] = _mean(response.rises(actual, tolerance), f"ties up to {tolerance:g}")
    rows[f"response_error{end}"] = _mean(response.response_error(expected, actual))
    for k, error in enumerate(response.response_error_per_bin(expected, actual).tolist()):
        rows[f"response_error_bin_{k}{end}"] = error, n, ""
    return rows


def consistency_table(
    explanations: Explanations,
    classifier: nn.Module,
    real: Tensor,
    *,
    own: nn.Module | None = None,
    common: nn.Module | None = None,
    face: nn.Module | None = None,
    unchanged: Tensor | None = None,
    returned: Tensor | None = None,
    official: bool = True,
    embedded: bool = True,
    smallest: int = 20,
    device: torch.device | str = "cpu",
) -> pd.DataFrame:
    """Tables 1, 2 and 5: FID by group, latent space closeness (LSC), verification and l1 errors.

    Rows: fid, fid_present, fid_absent and the same of fid_embedded; lsc_method, lsc_common; fva,
    fva_embedded; identity_error, reversal_error. Rows without their argument are left out.

    Args:
        real: real images (N, C, H, W), for FID; also those that are no query.
        own: the method's encoder, for lsc_method.
        common: an encoder that all methods share, for lsc_common.
        face: identity encoder with a `threshold`, for fva_embedded.
        unchanged: I(x, 0), (B, C, H, W), for identity_error.
        returned: I(I(x, delta), -delta), (B, K, C, H, W), for reversal_error.
        official: try the published Inception and VGGFace2 networks; embedded: AlexNet for FID.
        smallest: of a group, as in `fid_groups.fid_by_group`.
    """
    query, progression = images_of(explanations)
    f = response.respond(classifier, real), response.respond(classifier, progression).flatten()
    parts = _Consistency(query, progression, real, f, smallest, device)
    fid_names = tuple("fid" + group for group in fid_groups.GROUPS)
    rows: dict[str, Row] = {}
    if official:
        rows |= compute_columns(fid_names, lambda: parts.realism("inception"))
    if embedded:
        names = tuple("fid_embedded" + group for group in fid_groups.GROUPS)
        rows |= compute_columns(names, lambda: parts.realism("alexnet"))
    for name, encoder in (("lsc_method", own), ("lsc_common", common)):
        if encoder is not None:
            rows[name] = parts.closeness(encoder)
    if official and query.shape[1] == 3:
        rows |= compute_columns(
            ("fva",), lambda: parts.verification(encoders.load("vggface2", device))
        )
    if face is not None:
        rows |= parts.verification(face)
    if unchanged is not None:
        rows["identity_error"] = _mean(closeness.l1_error(query, unchanged))
    if returned is not None:
        closeness.check_progression(query, returned)
        errors = [closeness.l1_error(query, images) for images in returned.unbind(1)]
        rows["reversal_error"] = _mean(torch.stack(errors, 1).mean(1), "mean over bins")
    return _frame(rows)


@dataclass(frozen=True, eq=False)
class _Consistency:
    """Computes rows of `consistency_table` from images."""

    query: Tensor
    progression: Tensor
    real: Tensor
    responses: tuple[Tensor, Tensor]  # f of the real images (N,) and of all explanations (B K,)
    smallest: int
    device: torch.device | str

    def realism(self, name: str) -> dict[str, Row]:
        encoder = encoders.load(name, self.device)
        real = features.extract(encoder, as_rgb(self.real))
        fake = features.extract(encoder, as_rgb(self.progression.flatten(0, 1)))
        of_real, of_fake = self.responses
        return fid_groups.fid_by_group(real, of_real, fake, of_fake, self.smallest)

    def closeness(self, encoder: nn.Module) -> Row:
        share = closeness.latent_space_closeness(encoder, self.query, self.progression)
        return _mean(share.double().mean(1), f"per bin among {len(share)} explanations; Eq. 10")

    def verification(self, face: nn.Module) -> dict[str, Row]:
        verified, name = verify(face, self.query, self.progression)
        return {name: _mean(verified.mean(1), "mean over bins")}


def verify(face: nn.Module, query: Tensor, progression: Tensor) -> tuple[Tensor, str]:
    """Whether each explanation shows the query's person: (B, K) float64, and the metric's name.

    A pair is verified if the cosine of its features exceeds `face.threshold`.
    """
    threshold: Any = getattr(face, "threshold", None)
    if threshold is None:
        raise ValueError(f"face: got {type(face).__name__} without a threshold")
    a = features.extract(face, as_rgb(query))
    b = features.extract(face, as_rgb(progression.flatten(0, 1)))
    return (closeness.path_similarity(a, b) > threshold).double(), a.name("fva")


def difference_table(
    first: Explanations,
    second: Explanations,
    real: Tensor,
    face: nn.Module | None = None,
    realism: nn.Module | None = None,
    draws: int = 100,
    seed: int = 0,
) -> pd.DataFrame:
    """First method minus second on the same queries, with paired 95 % bootstrap intervals.

    Args:
        first, second: explanations of the same queries in the same order.
        real: real images for FID; face: as in `consistency_table`; realism: encoder of FID, the
            embedded AlexNet by default.

    Returns: rows fid or fid_embedded, and fva or fva_embedded with `face`; columns value, low,
        high, n.
    """
    (query, ours), (other_query, theirs) = images_of(first), images_of(second)
    if not torch.equal(query, other_query):
        raise ValueError("second: its queries differ from those of first, expected the same")
    encoder = encoders.load("alexnet") if realism is None else realism
    of_real, a, b = (
        features.extract(encoder, as_rgb(images))
        for images in (real, ours.flatten(0, 1), theirs.flatten(0, 1))
    )
    found = {a.name("fid"): fid_groups.fid_difference(of_real, a, b, len(query), draws, seed)}
    if face is not None:
        (verified, name), (other, _) = (verify(face, query, p) for p in (ours, theirs))
        found[name] = paired_difference(verified.mean(1), other.mean(1), seed=seed)
    table = pd.DataFrame.from_dict(found, orient="index")
    return table.rename(columns={"mean": "value"})[["value", "low", "high", "n"]]
