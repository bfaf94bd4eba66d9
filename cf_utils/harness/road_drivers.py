"""Two classifiers of roads side by side: what their explanations move, and what each relies on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from cf_utils.core import Counterfactuals
from cf_utils.datasets import rendered
from cf_utils.evaluation.baselines import baseline_rows
from cf_utils.evaluation.metrics import decision
from cf_utils.evaluation.truth import displacement, localization, map_tables, true_counterfactuals
from cf_utils.explainers.ace import ACE
from cf_utils.harness.cases import Case
from cf_utils.harness.road_cases import RoadCase, beside_a_car
from cf_utils.harness.road_truth import chain_of, renders
from cf_utils.models import classifiers, oracle_columns

RIGHT = ("right_braking", "right_car")  # factors of the car in the right lane
N_PROOF = 96  # scenes drawn for the proof
N_HOME = 64  # roads of the kind on which the second classifier was trained


def compare_moves(
    case: RoadCase, first: Counterfactuals, short: Counterfactuals, explain: ACE, seed: int
) -> pd.DataFrame:
    """Return how often each factor moves in the explanations of two classifiers.

    Only the first classifier's scenes with a car in the right lane count, since the second one's
    scenes are all of this kind. Columns: "first classifier", "second classifier", "R2 of the
    oracle". `attrs["n"]` holds the numbers of valid explanations.

    Args:
        first: ACE's explanations of all queries of the case.
        short: its explanations of the second classifier.
    """
    alike = first.select(beside_a_car(renders(case).factors).tolist())
    quality, null = read_quality(case), case.null(chain_of(explain), seed)
    shares = {}
    for name, cfs in (("first classifier", alike), ("second classifier", short)):
        read = displacement.measure(cfs, case.oracle, null)
        shares[name] = map_tables.share_moved(read, cfs.valid, list(quality))
    table = pd.DataFrame(shares).assign(**{"R2 of the oracle": pd.Series(quality)})
    table.attrs["n"] = [int(alike.valid.sum()), int(short.valid.sum())]
    return table


def read_quality(case: RoadCase) -> dict[str, float]:
    """Return factor -> R^2 of the oracle, the least one of the factor's columns."""
    assert case.truth is not None
    columns, found = case.truth.oracle.quality["columns"], {}
    for column in case.oracle.names:
        factor = oracle_columns.factor_of(column)
        found[factor] = min(found.get(factor, float("inf")), columns[column]["r2"])
    return found


def prove_shortcut(case: RoadCase, second: Case) -> pd.DataFrame:
    """Return `map_tables.flip_alone` of both classifiers on scenes that no explanation shows.

    The scenes are of the second classifier's kind. The renderer moves the scene's own cause, the
    lamps of the car in the right lane, that car, and the trees.
    """
    world = renders(case).factors.world
    fresh = world.sample(N_PROOF, "validation")
    asked = {
        "the scene's own cause": tuple(case.causes),
        "lamps of the right car": RIGHT[:1],
        "the right car": RIGHT[1:],
        "trees": ("trees",),
    }
    both = {"first classifier": case.classifier, "second classifier": second.classifier}
    return map_tables.flip_alone(both, fresh.take(beside_a_car(fresh)), asked)


def examine_second(
    case: RoadCase, second: Case, short: Counterfactuals, explain: ACE, seed: int
) -> dict[str, float]:
    """Return what metrics.json holds of the second classifier and its explanations.

    Its accuracy on roads of its own kind and on all roads; how often its explanations move the car
    in the right lane; their semantic validity beside the renderer's and PGD's; and the share of
    their change that lies on that car, beside the share of the image that it covers.
    """
    g, data, truth = second.classifier, renders(second), _truth(second)
    own = rendered.load("roads", "validation", n=N_HOME, variant="confounded")
    uses, null = truth.uses, case.null(chain_of(explain), seed)
    right = {k: uses[k] for k in RIGHT}
    ways = right | {k: uses[k] for k in case.causes}
    answers = {"": short, **baseline_rows(g, data, short.target, ways, scores=short.score)}
    firm = {}
    for name, cfs in answers.items():
        read = displacement.measure(cfs, case.oracle, null)
        valid = displacement.semantic_validity(cfs, data.factors, g, read)
        firm[name] = valid.nanmean().item()
    read = displacement.measure(short, case.oracle, null)
    moved = displacement.used_factor_moved(read, right, min_flips=0.0)[short.valid]
    lane = true_counterfactuals.find(short, data.factors, g, right, min_flips=0.0)
    lane = localization.true_region(lane, localization.member_regions(lane, data.factors))
    inside = localization.share_inside(localization.change_map(short), lane)
    return {
        "shortcut_accuracy_at_home": classifiers.accuracy(g, own.x, own.y),
        "shortcut_accuracy": second.card.quality["test_accuracy"] if second.card else float("nan"),
        "flip_rate_shortcut": decision.validity(short),
        "used_factor_moved_shortcut": moved.nanmean().item(),
        "semantic_validity_shortcut": firm[""],
        "semantic_validity_shortcut_ceiling": firm["true"],
        "semantic_validity_shortcut_pgd": firm["PGD"],
        "share_inside_right_lane": inside.nanmean().item(),
        "right_lane_area": localization.area(lane).nanmean().item(),
    }


def proof_metrics(proof: pd.DataFrame) -> dict[str, float]:
    """Return what metrics.json holds of `prove_shortcut`: flips of the second classifier."""
    second: Mapping[str, Any] = proof["second classifier"].to_dict()
    return {
        "shortcut_flips_right_braking": second["lamps of the right car"],
        "shortcut_flips_right_car": second["the right car"],
        "shortcut_flips_cause": second["the scene's own cause"],
    }


def _truth(case: Case) -> Any:
    """Return what is known about a rendered case."""
    return case.truth
