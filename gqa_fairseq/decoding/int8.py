"""Linear layers in 8 bits on a CPU: a quarter of the weights' traffic, with less accuracy.

Weights are rounded once, symmetrically, with a scale for each output. The input of each product is
rounded at each call, with one scale for the whole tensor (dynamic quantization). That scale depends
on what else is in the batch, so translations may too. Sums are exact, and scaled back to float32.
Attention over the cache, norms and softmax stay in float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gqa_fairseq.finite import require_finite

# (x [rows, in], what is added [rows, out] or None) -> [rows, out]
Multiply = Callable[[Tensor, Tensor | None], Tensor]

NEEDS_FUSED = (
    "--int8 multiplies by fused weights, which have no dropout and no forward hooks: leave it out, "
    "or --retain-dropout and is_fused = False"
)


def int8_multiply(weight: Tensor, bias: Tensor | None, is_relu: bool) -> Multiply:
    """x [..., in] -> relu(x W^T + b) [..., out] with W [out, in] rounded to 8 bits, on a CPU."""
    scales = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny).double() / 127
    zeros = torch.zeros(weight.shape[0], dtype=torch.int64)
    with warnings.catch_warnings():  # torch will drop this type, but can pack no other yet
        warnings.filterwarnings("ignore", message=".*quantize_per_channel", category=UserWarning)
        rounded = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(rounded, bias)
    operators = torch.ops.quantized
    operator = operators.linear_relu_dynamic if is_relu else operators.linear_dynamic

    def run(x: Tensor, plus: Tensor | None = None) -> Tensor:
        y = operator(x, packed, True)  # reduced range: without it, processors without VNNI overflow
        return y if plus is None else y.add_(plus)

    return run


class Int8Linear(nn.Module):
    """A linear layer in 8 bits. It has no parameters, so it cannot be trained."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        bias = None if linear.bias is None else linear.bias.detach()
        self._multiply = int8_multiply(linear.weight.detach(), bias, is_relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], float32."""
        return self._multiply(x, None)


def quantize_int8(model: Any) -> None:
    """Runs all linear layers of a plugin's model in 8 bits from now on, in place.

    These are the decoder's steps, the encoder and the keys and values of the source. The model can
    only translate afterwards: the encoder's float weights are gone.

    Raises:
        ValueError: not a model of the plugin, or one whose steps run its modules, or its weights
            are not float32 on a CPU, or not finite: rounded ones would hide that.
    """
    if not hasattr(model.decoder, "is_int8"):
        raise ValueError("int8 needs a model of the plugin (--arch gqa_transformer): leave it out")
    weight = model.decoder.output_projection.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise ValueError("int8 needs float32 weights on a CPU: leave out --int8")
    if model.decoder.is_int8:
        return
    if model.decoder.runs_modules:
        raise ValueError(NEEDS_FUSED)
    require_finite(model.named_parameters())
    model.decoder.is_int8 = True
    for layer in model.decoder.layers:
        for name in ("k_proj", "v_proj"):  # the source's; DecoderStep has the decoder's others
            setattr(layer.encoder_attn, name, Int8Linear(getattr(layer.encoder_attn, name)))
    for parent in list(model.encoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Int8Linear(child))
