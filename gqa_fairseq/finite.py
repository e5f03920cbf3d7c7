"""Weights that are no finite numbers are refused by name, before anything is made of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def require_finite(weights: Iterable[tuple[str, Tensor]], within: str = "") -> None:
    """Refuses a model with the name of its first weight that is infinite or no number.

    Operators do different things with such weights, and some hide them: one that fuses ReLU makes 0
    of NaN, and a search goes on with words that mean nothing.

    Args:
        weights: their names, and tensors of any shape, type and device.
        within: what their names begin with.

    Raises:
        ValueError: there is one.
    """
    for name, weight in weights:
        if weight.is_meta or not weight.is_floating_point():
            continue
        # A sum takes no memory of the weight's size. It may overflow: then all are looked at.
        is_finite = torch.isfinite(weight.detach().sum(dtype=torch.float32))
        if not is_finite and not bool(torch.isfinite(weight).all()):
            raise ValueError(
                f"{within}{name} has weights that are no finite numbers (NaN or infinite): no "
                "translation can be made with them"
            )
