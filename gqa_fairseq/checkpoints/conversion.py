"""A checkpoint with fewer key/value heads, to train on from there (Ainslie et al. 2023, 2.1).

Everything but the attention stays as it is, d_ff included. convert.py is the command.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from fairseq import optim
from omegaconf import OmegaConf
from torch import Tensor, nn

from gqa_fairseq.architecture import ConversionMethod, Placement, check_conversion_method
from gqa_fairseq.attention import GroupedQueryAttention
from gqa_fairseq.checkpoints.merging import merge
from gqa_fairseq.checkpoints.parent import build_empty, build_parent, plugin_options, upgraded
from gqa_fairseq.models.config import GroupedQueryTransformerConfig, resolve
from gqa_fairseq.models.gqa_transformer import MODEL_NAME, misfit


def convert(
    state: dict[str, Any],
    num_kv_heads: int,
    method: ConversionMethod,
    placement: Placement = "all",
    seed: int = 1,
) -> dict[str, Any]:
    """A whole fairseq checkpoint with `num_kv_heads` key/value heads, from a whole one.

    Computed in float64 and stored as the weights were. An attention that has as many heads
    already keeps its weights, bit for bit, whatever the method. `merging.merge` explains `mean`,
    `first`, `svd` and `svd-product`; `random` is a new K and V, drawn from `seed` in the range of
    a new model (Ainslie et al. 2023, section 3.3).

    Args:
        state: what torch.load gives; it is not changed. Its model is this plugin's, or fairseq's
            `transformer`, of any version that fairseq itself can load.
        num_kv_heads: G, a divisor of what the checkpoint has.
        method: how heads that share become one.
        placement: `all` attentions, or those of the `decoder` (Ainslie et al. 2023, section 2.2).
        seed: for `random`.

    Returns:
        A state to be saved; `args` is None, and the config names `gqa_transformer` with all of
        its options. Update count, scheduler, place in the data and meters are the parent's, the
        optimizer has no moments and no steps.

    Raises:
        ValueError: one line that says why this cannot be done.
    """
    check_conversion_method(method)
    state = upgraded(state)
    weights = state["model"]
    parent = build_parent(state["cfg"].model, weights)
    options = plugin_options(parent)
    options |= {"num_kv_heads": num_kv_heads, "attention_placement": placement}
    resolved = GroupedQueryTransformerConfig(**options)
    resolve(resolved)
    options = {"_name": MODEL_NAME} | {name: getattr(resolved, name) for name in options}
    target = build_empty(OmegaConf.create(options), weights)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, attention in target.named_modules():
            if isinstance(attention, GroupedQueryAttention):
                before = _kv_heads(parent.get_submodule(name), name, attention.num_kv_heads)
                if before == attention.num_kv_heads:
                    continue
                if method == "random":
                    _renew(weights, name, attention)
                else:
                    heads = (attention.num_heads, before, attention.num_kv_heads)
                    convert_attention(weights, name, *heads, method)
    target.upgrade_state_dict(weights)
    difference = misfit(weights, target.state_dict())
    if difference:
        raise ValueError(f"the plugin's model cannot hold this checkpoint: {difference}")

    config = OmegaConf.to_container(state["cfg"], resolve=True, enum_to_str=True)
    assert isinstance(config, dict)
    if "ema" in state["extra_state"]:  # the running mean of weights starts at the new ones
        state["extra_state"]["ema"] = weights
        state["extra_state"].pop("ema_fp32_params", None)
    return state | {
        "args": None,
        "cfg": config | {"model": options},
        "last_optimizer_state": _restarted(state, target),
    }


def fairseq_train_options(state: dict[str, Any]) -> list[str]:
    """What `fairseq-train` has to be told of a converted checkpoint's model."""
    words = []
    for name, value in state["cfg"]["model"].items():
        option = "--arch" if name == "_name" else f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value is not None and value is not False:
            words += [option, str(value)]
    return words


# Weights, and the optimizer that goes with them.


def convert_attention(
    weights: dict[str, Tensor],
    name: str,
    num_heads: int,
    before: int,
    after: int,
    method: ConversionMethod,
) -> None:
    """Merge the `before` key/value heads of one attention into `after`, in place.

    Args:
        weights: of the whole model, by name; those below `name` are replaced, in their dtype.
        name: the attention's, such as `encoder.layers.0.self_attn`.
        num_heads: H, its query heads; `before` divides them, and `after` divides `before`.
        method: one of those that merge.
    """
    q, k, v = (_rows(weights, f"{name}.{part}_proj") for part in "qkv")
    out = weights[f"{name}.out_proj.weight"]

    def split(rows: Tensor, *heads: int) -> Tensor:  # [heads * D, X] -> [*heads, D, X]
        return rows.unflatten(0, (*heads, -1))

    queries_per_kv = num_heads // before
    k, q = merge(split(k, before), split(q, before, queries_per_kv), after, method)
    v, o = merge(split(v, before), split(out.double().T, before, queries_per_kv), after, method)
    for part, rows in (("q", q.flatten(0, 1)), ("k", k), ("v", v)):
        _store(weights, f"{name}.{part}_proj", rows.flatten(0, 1))
    weights[f"{name}.out_proj.weight"] = o.flatten(0, 2).T.to(out.dtype).contiguous()


def _kv_heads(parent: Any, name: str, wanted: int) -> int:
    """Key/value heads of the parent's attention `name`, a multiple of those that are wanted.

    Of fairseq's MultiheadAttention, or of this plugin's.
    """
    before = parent.num_kv_heads if isinstance(parent, GroupedQueryAttention) else parent.num_heads
    if before % wanted:
        raise ValueError(
            f"its {name} has {before} key/value heads, of which {wanted} cannot be made: heads are "
            "shared, never split"
        )
    return before


def _renew(weights: dict[str, Tensor], name: str, attention: GroupedQueryAttention) -> None:
    """Put the keys and values of a new layer of this shape into `weights`."""
    new = copy.deepcopy(attention).to_empty(device="cpu")
    new.reset_parameters()
    for part, weight in new.state_dict().items():
        if part.startswith(("k_proj", "v_proj")):
            weights[f"{name}.{part}"] = weight.to(weights[f"{name}.{part}"].dtype)


def _rows(weights: dict[str, Tensor], name: str) -> Tensor:
    """A projection in float64, [rows, C], or [rows, C + 1] with its bias as the last column."""
    weight, bias = weights[f"{name}.weight"].double(), weights.get(f"{name}.bias")
    return weight if bias is None else torch.cat([weight, bias.double()[:, None]], dim=1)


def _store(weights: dict[str, Tensor], name: str, rows: Tensor) -> None:
    """The inverse of `_rows`, in the dtype that the weights had."""
    bias = weights.get(f"{name}.bias")
    if bias is not None:
        weights[f"{name}.bias"] = rows[:, -1].to(bias.dtype, copy=True)
        rows = rows[:, :-1]
    weights[f"{name}.weight"] = rows.to(weights[f"{name}.weight"].dtype, copy=True).contiguous()


def _restarted(state: dict[str, Any], target: nn.Module) -> dict[str, Any]:
    """The optimizer's state with its settings, and as if no step had been made.

    fairseq restores the count of updates only along with an optimizer, so a checkpoint without
    one (an average, or one that was stripped) gets that of its config.
    """
    kept = state.get("last_optimizer_state")
    if kept is None:
        trained = [torch.empty(0) for p in target.parameters() if p.requires_grad]
        # In fp16 all weights are one flat parameter, unless the config says otherwise.
        common = state["cfg"].common
        is_flat = common.fp16 and not (common.memory_efficient_fp16 or common.fp16_no_flatten_grads)
        parameters = [nn.Parameter(p) for p in (trained[:1] if is_flat else trained)]
        return optim.build_optimizer(state["cfg"].optimizer, parameters).state_dict()
    if not isinstance(kept, dict) or not {"state", "param_groups"} <= kept.keys():
        raise ValueError("its optimizer is none of torch's, and cannot be started anew")
    # Some optimizers count their steps in the groups, most in the state.
    groups = [{k: v for k, v in group.items() if k != "step"} for group in kept["param_groups"]]
    return kept | {"state": {}, "param_groups": groups}
