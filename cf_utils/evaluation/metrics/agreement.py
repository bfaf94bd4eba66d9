"""Agreement of raters: majority answers and Fleiss' kappa (progressive exaggeration, Table 4).

Sources: Singla et al. (ICLR 2020), Section 4.6; Fleiss (1971); Viera & Garrett (2005), whose names
for ranges of kappa the paper uses.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from statsmodels.stats import inter_rater

NAMES = (  # Viera & Garrett (2005): upper end of a range, and its name
    (0.2, "slight"),
    (0.4, "fair"),
    (0.6, "moderate"),
    (0.8, "substantial"),
    (1.0, "almost perfect"),
)


def majority_answer(answers: Sequence[str]) -> str | None:
    """Return the answer given most often; None without answers or if two are equally frequent."""
    first, *rest = Counter(answers).most_common(2) or [(None, 0)]
    return None if rest and rest[0][1] == first[1] else first[0]


def fleiss_kappa(answers: Sequence[Sequence[str]]) -> tuple[float, int, int]:
    """Fleiss' kappa: agreement of raters above that expected by chance.

    At most 1; 0 is the agreement by chance. Read it beside the accuracy: if nearly all answers are
    equal, agreement by chance is high as well, and kappa is low although raters agree (the paper's
    third task).

    Args:
        answers: the answers to each question, in the order in which they were given.

    Returns: (kappa, questions used, raters per question). Fleiss requires equally many raters per
    question. We use the number of raters r >= 2 that keeps most answers: questions with fewer are
    left out, and of others the first r answers count. kappa is NaN without such a question, or
    if all answers are equal.
    """
    numbers = [len(given) for given in answers]
    kept = {r: r * sum(n >= r for n in numbers) for r in range(2, max(numbers, default=0) + 1)}
    if not kept:
        return math.nan, 0, 0
    r = max(kept, key=lambda k: (kept[k], k))
    used = [list(given)[:r] for given in answers if len(given) >= r]
    options = sorted({answer for given in used for answer in given})
    if len(options) == 1:
        return math.nan, len(used), r
    table = np.array([[given.count(option) for option in options] for given in used])
    return float(inter_rater.fleiss_kappa(table)), len(used), r


def interpret_kappa(kappa: float) -> str:
    """Return the name of kappa's range after Viera & Garrett, '' for NaN.

    kappa is rounded to two digits, as in their table. Raises ValueError above 1.
    """
    if math.isnan(kappa):
        return ""
    value = round(kappa, 2)
    if value > 1:
        raise ValueError(f"kappa: got {kappa}, expected at most 1")
    return "poor" if value < 0 else next(name for high, name in NAMES if value <= high)
