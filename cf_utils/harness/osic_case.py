"""The case of OSIC's patients, and the choice between them and rendered patients.

No network of OSIC ships. `cf train osic_diffae osic_decline osic_decline_agent --data DIR` trains
those of the label "decline"; with "mortality" in place of "decline", those of the paper's label.
"""

from __future__ import annotations

import torch

from cf_utils.core import check_count
from cf_utils.core.choices import check_choice
from cf_utils.datasets import osic
from cf_utils.harness import ct_cases
from cf_utils.harness.ct_cases import UNDECIDED, CTCase
from cf_utils.models import checkpoints
from cf_utils.models.agent import OBJECTIVES
from cf_utils.models.classifiers import predict

DATASETS = ("lung_ct", "osic")


def ct_case(
    dataset: str,
    root: str = "",
    n: int = 8,
    device: torch.device | str = "cpu",
    seed: int = 0,
    undecided: bool = False,
    label: str = "decline",
) -> CTCase:
    """Return n test patients of a data set with its networks.

    Args:
        dataset: lung_ct (rendered patients of site A), or osic.
        root: folder of OSIC's official files.
        seed: of rendered patients.
        undecided: take only patients on whom the classifier is undecided.
        label: of OSIC, decline or mortality.

    Raises ValueError for another data set, and what `rendered_case` or `osic_case` raises.
    """
    if check_choice("dataset", dataset, DATASETS) == "osic":
        return osic_case(root, n, label, device, undecided)
    return ct_cases.rendered_case(n, seed=seed, device=device, undecided=undecided)


def osic_case(
    root: str,
    n: int,
    label: str = "decline",
    device: torch.device | str = "cpu",
    undecided: bool = False,
) -> CTCase:
    """Return the first n test patients of OSIC, at the size of the autoencoder's slices.

    Args:
        root: folder of the official files.
        label: decline or mortality.
        undecided: take the first n patients on whom the classifier is undecided, or all if there
            are fewer.

    Raises FileNotFoundError that names a missing file, or a missing checkpoint and the command that
    trains it, and ValueError on other values or if no patient is undecided.
    """
    check_count("n", n)
    check_choice("label", label, tuple(osic.CLASSES))
    autoencoder = checkpoints.load("osic_diffae", device, kind="autoencoder").model
    net, card = checkpoints.load(f"osic_{label}", device, kind="classifier")
    agents = {"l1": f"osic_{label}_agent"}
    agents |= {k: f"osic_{label}_agent_{k}" for k in OBJECTIVES if k != "l1"}
    names = {k: name for k, name in agents.items() if k == "l1" or checkpoints.exists(name)}
    data = osic.load(root, "test", label, size=autoencoder.size[0])
    data = (data if undecided else data.take(range(min(n, len(data))))).in_memory()
    if undecided:
        p = predict(net, data.x).softmax(1)[:, 1]
        rows = ((p - 0.5).abs() <= UNDECIDED).nonzero()[:n, 0]
        if not len(rows):
            raise ValueError(f"undecided: got none of {len(p)} test patients with |p - 0.5| <= 0.1")
        data = data.take(rows)
    return CTCase(
        name="osic (official)",
        dataset="osic",
        data=data,
        classifier=net,
        prior=None,
        card=card,
        autoencoder=autoencoder,
        agents={k: checkpoints.load(v, device, kind="agent").model for k, v in names.items()},
    )
