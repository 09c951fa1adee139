"""The linear probe of the evaluation: how much of an emotion lies open in frozen CLIP image features.

Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 3.2.
"""

import itertools
import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

CS = tuple(10.0**power for power in range(-4, 4))  # a small C is a strong penalty
MAX_ITER = 1000


@dataclass(frozen=True)
class LinearProbe:
    """A fitted logistic regression, the choices that val made, and how well it did there."""

    model: Pipeline
    C: float
    standardised: bool
    val_accuracy: float


def fit_linear_probe(
    features: np.ndarray, labels: np.ndarray, val_features: np.ndarray, val_labels: np.ndarray
) -> LinearProbe:
    """Fit on the train faces; C, and whether features are standardised, are what is most often right on the val faces.

    Of equal ones the features as they are and the strongest penalty are taken. The val faces are not fitted in the end.

    Args:
        features: (N, E) of the train faces; `val_features` (M, E).
        labels: (N,) their classes; `val_labels` (M,).
    """
    probes = []
    for standardised, C in itertools.product((False, True), CS):
        scaling = [StandardScaler()] if standardised else []
        model = make_pipeline(*scaling, LogisticRegression(C=C, max_iter=MAX_ITER))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # val judges what it has reached by then
            model.fit(features.astype(np.float64), labels)
        probes.append(LinearProbe(model, C, standardised, model.score(val_features, val_labels)))
    return max(probes, key=lambda probe: probe.val_accuracy)
