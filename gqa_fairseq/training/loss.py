"""fairseq's label-smoothed cross entropy without copies of the vocabulary's scores.

`--criterion gqa_label_smoothed_cross_entropy` has the options, the losses and the checkpoints of
fairseq's `label_smoothed_cross_entropy`. Scores over the vocabulary are made for some rows at a
time and become their own gradient, so that they never leave the cache; padding is not projected at
all. And the model is asked for packed sentences (packed.py).
"""

from __future__ import annotations

from typing import Any

import torch
from fairseq.criterions import register_criterion
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    LabelSmoothedCrossEntropyCriterionConfig,
)
from torch import Tensor, nn

from gqa_fairseq.training.native import operators_for

# Bytes of scores at a time: what a core's cache holds, and what fills a GPU.
_CHUNK_BYTES = {"cpu": 2**22, "cuda": 2**28}
_EXACT = (torch.float32, torch.float64)


@register_criterion(
    "gqa_label_smoothed_cross_entropy", dataclass=LabelSmoothedCrossEntropyCriterionConfig
)
class ProjectedCrossEntropyCriterion(LabelSmoothedCrossEntropyCriterion):
    """fairseq's criterion, which projects to the vocabulary itself where it can."""

    def forward(self, model: Any, sample: dict[str, Any], reduce: bool = True) -> tuple:
        """As in fairseq: the summed loss in nats, its denominator, and what is logged."""
        weight = _output_weight(model)
        if weight is None or not reduce or self.report_accuracy or self.ignore_prefix_size:
            return super().forward(model, sample, reduce)
        features, extra = model(**sample["net_input"], features_only=True, packed=True)
        target = sample["target"].flatten()
        if "rows" in extra:
            target = target[extra["rows"]]
        else:
            features = features.flatten(0, 1)
        is_real = target.ne(self.padding_idx)
        if not bool(is_real.all()):
            features, target = features[is_real], target[is_real]
        loss, nll_loss = projected_loss(features, weight, target, self.eps)
        ntokens, sentences = sample["ntokens"], sample["target"].size(0)
        sample_size = sentences if self.sentence_avg else ntokens
        logged = {
            "loss": loss.data,
            "nll_loss": nll_loss.data,
            "ntokens": ntokens,
            "nsentences": sentences,
            "sample_size": sample_size,
        }
        return loss, sample_size, logged


# fairseq goes on from a checkpoint of a criterion of the same class name alone.
ProjectedCrossEntropyCriterion.__name__ = LabelSmoothedCrossEntropyCriterion.__name__


def projected_loss(
    features: Tensor, weight: Tensor, target: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Label-smoothed loss, and -log p of the target, of features times an output layer's weight.

    fairseq's label_smoothed_nll_loss, summed over the rows, in nats: what is smoothed goes to the
    other words in equal parts.

    Args:
        features: [N, C], float32 or float64.
        weight: [V, C], the same dtype.
        target: [N] int64, none of them padding.
        smoothing: epsilon, from 0 to 1.

    Returns:
        two scalars; the gradient is that of the first.
    """
    if not torch.is_grad_enabled():  # which an autograd function is not told
        features, weight = features.detach(), weight.detach()
    return _ProjectedLoss.apply(features, weight, target, smoothing)


class _ProjectedLoss(torch.autograd.Function):
    """The gradient is made with the loss: then the scores are there."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, target: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        words = weight.shape[0]
        other = smoothing / (words - 1)
        right = 1 - smoothing - other
        with_gradient = any(ctx.needs_input_grad[:2])
        d_features = torch.empty_like(features) if with_gradient else None
        d_weight = torch.zeros_like(weight) if with_gradient else None
        native = operators_for(weight)
        size = _CHUNK_BYTES.get(weight.device.type, 2**28)
        chunk = max(1, size // (words * weight.element_size()))
        sums = features.new_zeros(2)
        scores = features.new_empty(min(chunk, len(features)), words)
        for start in range(0, len(features), chunk):
            rows = features[start : start + chunk]
            logits, targets = scores[: len(rows)], target[start : start + chunk]
            torch.mm(rows, weight.t(), out=logits)
            if native is not None:
                sums += native.smoothed_loss_(logits, targets, right, other).sum(0)
            else:
                sums += _smoothed_loss_(logits, targets, right, other)
            if d_features is not None and d_weight is not None:
                torch.mm(logits, weight, out=d_features[start : start + chunk])
                d_weight.addmm_(logits.t(), rows)
        ctx.save_for_backward(d_features, d_weight)
        loss, nll = right * sums[0] + other * sums[1], sums[0].clone()
        ctx.mark_non_differentiable(nll)
        return loss, nll

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_features, d_weight = ctx.saved_tensors
        return d_features * d_loss, d_weight * d_loss, None, None


def _smoothed_loss_(logits: Tensor, targets: Tensor, right: float, other: float) -> Tensor:
    """As the native operator, with the rows' losses added up: [2]."""
    at = targets[:, None]
    log_probs = torch.log_softmax(logits, dim=-1)
    sums = torch.stack([-log_probs.gather(1, at).sum(), -log_probs.sum()])
    torch.exp(log_probs, out=logits).sub_(other)
    logits.scatter_add_(1, at, torch.full_like(at, -right, dtype=logits.dtype))
    return sums


def _output_weight(model: Any) -> Tensor | None:
    """The weight that makes scores of features [V, C]; None where it takes more than that.

    The weight is tied to the embedding, so that a wrapper for several devices, which looks at what
    the model's own forward pass used, knows of it.
    """
    if not getattr(model, "takes_packed", False):  # fairseq's own models
        return None
    output = model.decoder.output_projection
    if type(output) is not nn.Linear or output.bias is not None:
        return None
    weight = output.weight
    is_tied = weight is model.decoder.embed_tokens.weight
    is_exact = weight.dtype in _EXACT and not torch.is_autocast_enabled(weight.device.type)
    return weight if is_tied and is_exact else None
