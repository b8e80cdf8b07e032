"""Whether the logits are W h + v of the watched features: what every bound rests on, measured without a second pass.

The own logit less the mean of all logits, z = (w_c - wbar) . h + v_c - vbar, is linear in h, so that its mean over a
class is that of the class mean. Its sums come from the logits as the network computed them: any layer, temperature,
dropout or mask between the features and the logits shows in the difference.
"""

from __future__ import annotations

import numpy as np

from ncmon import geometry
from ncmon.metrics.view import View
from ncmon.model import FloatArray, Window

LINEAR = 1e-5
"""Share of the longest own logit that single precision may leave between a logit and W h + v."""
COARSE = 1e-3
"""Above this share the logits' own precision says nothing."""


def linear(view: View) -> tuple[bool | None, str]:
    """Return the same as `linear_head` of a view of the classifier's input."""
    return linear_head(view.window, view.centred_weight, view.slopes)


def linear_head(
    window: Window, centred: FloatArray | None = None, slopes: FloatArray | None = None
) -> tuple[bool | None, str]:
    """Return whether they are, None where that cannot be told, and what says so.

    `centred` are the rows w_c - wbar (C, d) and `slopes` their lengths (C,), where they are known already.
    """
    head, layer = window.head, window.classifier_input
    if layer is None or head.weight is None or head.own_logit_sums is None or head.label_counts is None:
        return None, "own logits were not measured, or the weights were not sent"
    if head.has_bias and head.bias is None:
        return None, "the bias was not sent"
    if head.weight.shape[1] != layer.n_features:
        return False, f"the classifier reads {head.weight.shape[1]} features, these are {layer.n_features}"
    same = (layer.class_counts > 0) & (head.label_counts == layer.class_counts)
    if not same.any():
        return None, "features and logits are of different samples"
    counts = layer.class_counts[same].astype(np.float64)
    rows = head.weight - head.weight.mean(axis=0) if centred is None else centred
    lengths = geometry.row_norms(rows) if slopes is None else slopes
    said = geometry.row_products(rows, layer.class_means)[same]
    if head.bias is not None:
        said = said + (head.bias - head.bias.mean())[same]
    off = float(np.abs(head.own_logit_sums[same] / counts - said).max())
    longest = np.sqrt(layer.norm_sq_sums[same] / counts) * lengths[same]
    scale = float(longest.max()) + (0.0 if head.bias is None else float(np.abs(head.bias).max()))
    fact = f"own logits of class means off by {off:.2g}, the longest is {scale:.3g}"
    share = max(LINEAR, 8 * max(head.logits_eps, layer.eps))
    if share > COARSE:
        return None, f"{fact}: computed in low precision"
    if off <= share * scale:
        return True, fact
    return (False, fact) if window.exact else (None, f"{fact}: the weights moved")
