"""Agreement of two-class classifiers: a student with its teacher, or a classifier with labels.

Source: Fang et al., DiffExplainer (MICCAI workshop 2024), section 3.3, Table 1. The decisions of
the black box are the ground truth for its agent. Blind spot: accuracy, sensitivity, specificity and
F1 only see the decisions; AUC and the divergence also see the scores.
"""

from __future__ import annotations

from sklearn.metrics import roc_auc_score
from torch import Tensor


def confusion(decision: Tensor, truth: Tensor) -> dict[str, float]:
    """Accuracy, sensitivity, specificity and F1 of decisions, class 1 being positive.

    Each is in [0, 1], higher is better, and NaN where its denominator is 0.

    Args: decision, truth: (N,) of 0 and 1. Raises ValueError on other shapes or values.
    """
    if decision.shape != truth.shape or decision.ndim != 1:
        raise ValueError(
            f"decision, truth: got {tuple(decision.shape)}, {tuple(truth.shape)}, expected (N,)"
        )
    for name, values in (("decision", decision), ("truth", truth)):
        if not ((values == 0) | (values == 1)).all():
            raise ValueError(f"{name}: got {values.unique().tolist()[:5]}, expected 0 and 1")
    said, true = decision.bool(), truth.bool()
    hits, both = (said & true).sum().item(), (~said & ~true).sum().item()
    n_said, n_true, n = said.sum().item(), true.sum().item(), len(true)
    return {
        "accuracy": _ratio(hits + both, n),
        "sensitivity": _ratio(hits, n_true),
        "specificity": _ratio(both, n - n_true),
        "f1": _ratio(2 * hits, n_said + n_true),
    }


def auc(score: Tensor, truth: Tensor) -> float:
    """Area under the ROC curve of scores (N,) for labels (N,) of 0 and 1; NaN with one class."""
    if len(truth.unique()) < 2:
        return float("nan")
    return float(roc_auc_score(truth.cpu().numpy(), score.detach().double().cpu().numpy()))


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(p || q) of class probabilities, from logits (N, K) each. (N,) >= 0 nats, lower is closer.

    p are the teacher's probabilities, q the student's.
    """
    p, q = teacher.double().log_softmax(1), student.double().log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def measure_alignment(agent: Tensor, teacher: Tensor) -> dict[str, float | int]:
    """Measure how well an agent agrees with its teacher, from logits (N, 2) of both.

    Returns:
        n; auc, accuracy, sensitivity, specificity and f1 of the agent against the teacher's
        decisions; kl, mean KL(teacher || agent) in nats; kl_constant, the same for the best
        predictor that gives all items the same probability, the teacher's mean.
    Raises ValueError on other shapes.
    """
    if agent.shape != teacher.shape or agent.ndim != 2 or agent.shape[1] != 2:
        raise ValueError(
            f"agent, teacher: got {tuple(agent.shape)}, {tuple(teacher.shape)}, expected logits "
            "(N, 2) of both"
        )
    truth, mean = teacher.argmax(1), teacher.double().softmax(1).mean(0, keepdim=True)
    return {
        "n": len(teacher),
        "auc": auc(agent[:, 1] - agent[:, 0], truth),
        **confusion(agent.argmax(1), truth),
        "kl": divergence(teacher, agent).mean().item(),
        "kl_constant": divergence(teacher, mean.log().expand_as(teacher)).mean().item(),
    }


def _ratio(a: float, b: float) -> float:
    return a / b if b else float("nan")
