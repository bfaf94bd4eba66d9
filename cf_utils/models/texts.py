"""Predictions for whole texts, which differ in length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cf_utils.datasets.glove import TAIL, Glove, embed, encode
from cf_utils.models.classifiers import predict


def predict_texts(classifier: nn.Module, glove: Glove, texts: Sequence[str]) -> Tensor:
    """Return the logits (N, K) of texts. Batches hold texts of similar length, to save padding.

    Args:
        classifier: maps word vectors (B, L, d) to logits (B, K), whatever the padding.
        glove: the word vectors that the classifier was trained on.
        texts: as written; `glove.encode` cuts them into words.
    """
    rows = encode(glove, texts)
    length = (rows >= 0).sum(1)
    parts = length.argsort(stable=True).split(100)
    batches = (embed(glove, rows[part, : length[part].max() + TAIL]) for part in parts)
    logits = torch.cat([predict(classifier, batch) for batch in batches])
    return logits[torch.cat(parts).argsort()]
