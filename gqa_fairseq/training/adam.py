"""fairseq's Adam, a whole group of parameters in one call (`--optimizer gqa_adam`)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from fairseq.optim import register_optimizer
from fairseq.optim.adam import Adam, FairseqAdam, FairseqAdamConfig
from torch import Tensor
from torch.optim.adamw import adamw

_IN_ONE_CALL = (torch.float32, torch.float64)


class FusedAdam(Adam):
    """fairseq's Adam by PyTorch's fused operator, on a CPU and on a GPU.

    Parameters, moments and `step` are the same, to rounding. PyTorch adds epsilon to the corrected
    root of the second moment, fairseq to the root itself: epsilon is divided by the correction.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update; half-precision or sparse ones by fairseq's own code."""
        own = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        if not all(_is_plain(p) for params in own for p in params):
            return super().step(closure)
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group, params in zip(self.param_groups, own, strict=True):
            if group["amsgrad"]:
                raise ValueError("amsgrad is not supported: fairseq has no option for it")
            of_one_age = defaultdict(list)
            for p in params:
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "exp_avg": torch.zeros_like(p)}
                    state["exp_avg_sq"] = torch.zeros_like(p)
                state["step"] += 1
                of_one_age[p.device, int(state["step"])].append(p)
            for (device, step), same in of_one_age.items():
                self._update(group, same, step, device)
        return loss

    def _update(
        self, group: dict[str, Any], params: list[Tensor], step: int, device: torch.device
    ) -> None:
        beta1, beta2 = group["betas"]
        adamw(
            params,
            [p.grad for p in params if p.grad is not None],
            [self.state[p]["exp_avg"] for p in params],
            [self.state[p]["exp_avg_sq"] for p in params],
            [],
            list(torch.full((len(params),), step - 1.0, device=device).unbind()),
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"] / math.sqrt(1 - beta2**step),
            maximize=False,
        )


def _is_plain(p: Tensor) -> bool:
    return p.dtype in _IN_ONE_CALL and p.grad is not None and not p.grad.is_sparse


@register_optimizer("gqa_adam", dataclass=FairseqAdamConfig)
class FusedFairseqAdam(FairseqAdam):
    """`--optimizer adam` with FusedAdam; the same options and the same checkpoints."""

    _optimizer: torch.optim.Optimizer

    def __init__(self, cfg: FairseqAdamConfig, params: Any) -> None:
        super().__init__(cfg, params)
        if type(self._optimizer) is Adam:  # else apex's, which fairseq takes where it is installed
            groups = [{"params": group["params"]} for group in self._optimizer.param_groups]
            self._optimizer = FusedAdam(groups, **self.optimizer_config)


# fairseq goes on from a checkpoint of an optimizer of the same class name alone.
FusedFairseqAdam.__name__ = FairseqAdam.__name__
