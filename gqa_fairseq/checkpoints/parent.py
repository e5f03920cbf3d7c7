"""What model a checkpoint holds, by the plugin's options: one of its own, or of fairseq's.

fairseq's code reads it, so that every version and every named `transformer` that fairseq can load
is known. What the plugin's model does not have is refused by name.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from fairseq import checkpoint_utils, models
from fairseq.data import Dictionary
from fairseq.models.transformer import TransformerConfig, TransformerModel, TransformerModelBase
from omegaconf import OmegaConf
from torch import Tensor

from gqa_fairseq.errors import OptionError
from gqa_fairseq.finite import require_finite
from gqa_fairseq.models.config import REFUSED, GroupedQueryTransformerConfig
from gqa_fairseq.models.gqa_transformer import GroupedQueryTransformerModel, misfit

_OPTIONS = [
    field.name
    for field in fields(GroupedQueryTransformerConfig)
    if not field.name.startswith("_") and field.name not in REFUSED
]
# fairseq's options that the plugin's model does not have, and that change nothing in it: how memory
# is saved, where embeddings were read from, and what belongs to options that are refused.
_WITHOUT_EFFECT = {
    *("checkpoint_activations", "offload_activations", "min_params_to_wrap", "export"),
    *("encoder_embed_path", "decoder_embed_path", "decoder_input_dim", "decoder_output_dim"),
    *("adaptive_softmax_dropout", "adaptive_softmax_factor", "tie_adaptive_weights"),
    *("tie_adaptive_proj", "quant_noise_pq_block_size", "base_sublayers", "base_shuffle"),
    "relu_dropout",  # an old name of activation_dropout, which takes it over
}
# Sinusoids were buffers once. fairseq ignores them; the plugin refuses what it does not know.
_FORMER_BUFFERS = ("embed_positions._float_tensor", "embed_positions.weights")


def upgraded(state: dict[str, Any]) -> dict[str, Any]:
    """A copy that shares its tensors, as fairseq's present version would have written it.

    `cfg` is omegaconf's, which fairseq's upgrade wants.

    Raises:
        ValueError: fairseq could not load it either.
    """
    if state.get("cfg") is None and state.get("args") is None:
        raise ValueError("it does not say what model it holds: it has neither `cfg` nor `args`")
    tensors = {id(t): t for t in _tensors(state)}
    state = copy.deepcopy(state, tensors)
    try:
        if state.get("cfg") is not None:
            state["cfg"] = OmegaConf.create(state["cfg"], flags={"allow_objects": True})
        return checkpoint_utils._upgrade_state_dict(state)
    except Exception as error:  # of many kinds, as an upgrade reads what it expects to be there
        raise ValueError(
            f"fairseq could not load it either ({type(error).__name__}: {error})".split("\n")[0]
        ) from error


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, Tensor):
        return [value]
    if not isinstance(value, dict | list | tuple):
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [tensor for each in inner for tensor in _tensors(each)]


def build_parent(options: Any, weights: dict[str, Tensor]) -> TransformerModelBase:
    """The model of a checkpoint, empty; `weights` get the names that they have in it today.

    Args:
        options: `cfg.model` of the checkpoint, as fairseq keeps it.
        weights: by name, of the checkpoint; old names are replaced in place.

    Raises:
        ValueError: it is another kind of model, it was built with an option that the plugin does
            not have, or config and weights do not go together.
    """
    name = getattr(options, "_name", None) or getattr(options, "arch", None)
    kind = models.ARCH_MODEL_REGISTRY.get(name) or models.MODEL_REGISTRY.get(name)
    if kind not in (TransformerModel, GroupedQueryTransformerModel):
        raise ValueError(
            f"its model is {name!r}, which is no encoder-decoder Transformer of this plugin or "
            "fairseq's `transformer`"
        )
    require_finite(weights.items())
    options = copy.deepcopy(options)
    for side in ("encoder", "decoder"):  # the file of pretrained embeddings is not needed again
        if getattr(options, f"{side}_embed_path", None):
            setattr(options, f"{side}_embed_path", None)
    try:
        parent = build_empty(options, weights)
    except OptionError as error:
        reason = str(error).removeprefix("error: ")
        raise ValueError(f"its config makes no model: {reason}") from error
    except ValueError:
        raise
    except Exception as error:  # of many kinds
        raise ValueError(
            f"its config makes no model ({type(error).__name__}: {error})".split("\n")[0]
        ) from error
    _refuse_other_options(parent.cfg)
    parent.upgrade_state_dict(weights)
    for name in [name for name in weights if name.endswith(_FORMER_BUFFERS)]:
        del weights[name]
    difference = misfit(weights, parent.state_dict())
    if difference:
        raise ValueError(f"its weights are not those of its config: {difference}")
    return parent


def build_empty(options: Any, weights: dict[str, Tensor]) -> Any:
    """The model that `options` describe, for the vocabularies of `weights`, on no device."""
    words = {}
    for side in ("encoder", "decoder"):
        embeddings = weights.get(f"{side}.embed_tokens.weight")
        if embeddings is None:
            raise ValueError(f"it has no {side}.embed_tokens.weight, as an encoder-decoder has")
        words[side] = Dictionary()
        for i in range(len(words[side]), len(embeddings)):
            words[side].add_symbol(f"w{i}")
    task = argparse.Namespace(
        source_dictionary=words["encoder"], target_dictionary=words["decoder"]
    )
    with torch.device("meta"):
        return models.build_model(copy.deepcopy(options), task, from_checkpoint=True)


def _refuse_other_options(cfg: TransformerConfig) -> None:
    """Raise ValueError where the model was built with an option that the plugin does not have."""
    given, usual = _flat(cfg), _flat(TransformerConfig.from_namespace(argparse.Namespace()))
    for name in sorted(usual.keys() - _WITHOUT_EFFECT - set(_OPTIONS)):
        if given[name] != usual[name]:
            raise ValueError(
                f"its model was built with {name} = {given[name]!r}, and the plugin's has "
                f"{usual[name]!r} alone"
            )


def plugin_options(parent: TransformerModelBase) -> dict[str, Any]:
    """A model's options, by their names in the plugin's dataclass."""
    options = {name: getattr(parent.cfg, name, None) for name in _OPTIONS}
    options["activation_fn"] = str(options["activation_fn"])  # may be a class of fairseq's choices
    if not isinstance(parent, GroupedQueryTransformerModel):
        options["use_bias"] = True
        options["activation_dropout"] = options["activation_dropout"] or parent.cfg.relu_dropout
    return options


def _flat(cfg: Any) -> dict[str, Any]:
    """fairseq's nested options by the names that they have on the command line."""
    flat: dict[str, Any] = {}
    for name in [f.name for f in fields(cfg) if not f.name.startswith("_")]:
        value = getattr(cfg, name)
        inner = _flat(value) if is_dataclass(value) else None
        flat |= {name: value} if inner is None else {f"{name}_{n}": v for n, v in inner.items()}
    return flat
