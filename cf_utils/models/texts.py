"""Predictions for whole texts, which differ in length."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cf_utils.datasets.glove import TAIL, Glove, embed, encode
from cf_utils.models.classifiers import predict


def predict_texts(classifier: nn.Module, glove: Glove, texts: Sequence[str]) -> Tensor:
    """Return the logits (N, K) of texts, sorted into batches of similar length to save padding.

    Args:
        classifier: maps word vectors (B, L, d) to logits (B, K), whatever the padding.
        glove: the word vectors that the classifier was trained on.
        texts: as written; `glove.encode` cuts them into words.
    """
    rows = encode(glove, texts)
    length, out = (rows >= 0).sum(1), None
    for part in length.argsort(stable=True).split(100):
        logits = predict(classifier, embed(glove, rows[part, : length[part].max() + TAIL]))
        out = logits.new_empty(len(rows), logits.shape[1]) if out is None else out
        out[part] = logits
    return out
