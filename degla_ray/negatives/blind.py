"""How well negatives are told from captions without a look at the image (SugarCrepe's lesson, 2306.14610).

Where a text-only model can tell them, a fine-tuned one may learn to, and learn nothing of images. The judge
here is simple on purpose: logistic regression on words and pairs of words. 50 % is what one wants; replaced
words that captions never use, and scrambled order, give themselves away. 2,000 pairs of a kind take 1 s.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

MAX_PAIRS = 2000
MIN_PAIRS = 50
FOLDS = 5


def blind_accuracy(pairs: Sequence[tuple[str, str]], seed: int) -> float | None:
    """Share of pairs in which the judge finds the caption, on pairs it has not seen; ties count half.

    Args:
        pairs: (caption, negative); those of one caption stay in one fold.
        seed: draws at most MAX_PAIRS of them.

    Returns:
        In [0, 1]; none for fewer than MIN_PAIRS pairs.
    """
    import numpy as np
    import scipy.sparse
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    drawn = random.Random(seed).sample(list(pairs), min(MAX_PAIRS, len(pairs)))
    if len({caption for caption, _ in drawn}) < max(FOLDS, MIN_PAIRS):
        return None
    captions, negatives = zip(*drawn, strict=True)
    words = CountVectorizer(ngram_range=(1, 2), binary=True, token_pattern=r"[^\s]+", lowercase=True)
    x = words.fit_transform([*captions, *negatives])
    difference = x[: len(drawn)] - x[len(drawn) :]  # the judge sees both and says which is the caption
    numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    groups = np.array([numbers[caption] for caption in captions])
    right = 0.0
    for train, test in GroupKFold(FOLDS).split(difference, groups=groups):
        judge = LogisticRegression(fit_intercept=False, max_iter=1000)
        both = np.concatenate([np.ones(len(train)), np.zeros(len(train))])
        judge.fit(scipy.sparse.vstack([difference[train], -difference[train]]), both)
        score = judge.decision_function(difference[test])
        right += float((score > 0).sum() + 0.5 * (score == 0).sum())
    return right / len(drawn)
