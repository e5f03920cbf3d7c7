"""The Transformer with grouped-query attention, as a fairseq model."""

import re
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Literal

import torch
from fairseq.checkpoint_utils import prune_state_dict
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import register_model
from fairseq.models.transformer import (
    TransformerDecoderBase,
    TransformerEncoderBase,
    TransformerModelBase,
)
from fairseq.modules import LearnedPositionalEmbedding
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from omegaconf import OmegaConf, open_dict
from torch import Tensor, nn

from gqa_fairseq.architecture import Architecture, Heads
from gqa_fairseq.attention import GroupedQueryAttention
from gqa_fairseq.decoding.cpu.cache import DecoderCache
from gqa_fairseq.decoding.weights import DecodingWeights
from gqa_fairseq.errors import OptionError
from gqa_fairseq.layers import GroupedQueryDecoderLayer, GroupedQueryEncoderLayer
from gqa_fairseq.models.config import GroupedQueryTransformerConfig, heads_of, nested, resolve
from gqa_fairseq.on_demand import OnDemand
from gqa_fairseq.training.packed import can_pack, packed_features

MODEL_NAME = "gqa_transformer"
_CACHE_KEY = "gqa_decoder_cache"


class GroupedQueryTransformerEncoder(TransformerEncoderBase):
    """fairseq's encoder; under placement `decoder` it keeps multi-head attention."""

    def build_encoder_layer(self, cfg) -> GroupedQueryEncoderLayer:
        layer = GroupedQueryEncoderLayer(cfg, heads_of(cfg)[0], cfg.use_bias)
        return _checkpointed(layer, cfg)

    def reorder_encoder_out(self, encoder_out: dict, new_order: Tensor) -> dict:
        """fairseq's gather, kept as one row a sentence where fairseq has one a hypothesis.

        As long as the `beam` rows of a sentence stay together, in the order of the rows, the
        result is those rows alone: the first call spreads each sentence over its beam and copies
        nothing, later ones copy only when a sentence leaves. Any other order is gathered, with one
        row a hypothesis.

        The order has to be looked at, for which a GPU is waited for once a call. The plugin's
        search never calls this, and fairseq's waits at every step as it is.
        """
        rows = encoder_out["encoder_out"][0].shape[1]
        beam = encoder_out.get("beam", [0])[0]
        width = beam or max(1, new_order.numel() // rows)
        order = new_order.cpu()
        sentences = order // beam if beam else order  # which row each hypothesis reads
        kept = sentences[::width]
        if not torch.equal(kept.repeat_interleave(width), sentences):
            kept, width = sentences, 1
        if not torch.equal(kept, torch.arange(rows)):
            encoder_out = super().reorder_encoder_out(encoder_out, kept.to(new_order.device))
        return {**encoder_out, "beam": [width]}


class GroupedQueryTransformerDecoder(DecodingWeights, TransformerDecoderBase):
    """fairseq's decoder with whole-sequence and cached forward passes of its own."""

    def build_decoder_layer(self, cfg, no_encoder_attn: bool = False) -> GroupedQueryDecoderLayer:
        heads, window = heads_of(cfg)[1], cfg.decoder.window
        return _checkpointed(GroupedQueryDecoderLayer(cfg, heads, window, cfg.use_bias), cfg)

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict,
        incremental_state: dict | None = None,
        features_only: bool = False,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
    ) -> tuple[Tensor, dict]:
        """As extract_features, then scores over the vocabulary [B, T, V] unless `features_only`.

        The last two arguments are fairseq's and have no effect, as in its own decoder.
        """
        x, extra = self.extract_features(
            prev_output_tokens,
            encoder_out,
            incremental_state,
            full_context_alignment,
            alignment_layer,
            alignment_heads,
        )
        if not features_only:
            x = (
                self.output_layer(x)
                if incremental_state is None
                else self._decoding_weights.output(x)
            )
        return x, extra

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict,
        incremental_state: dict | None = None,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
    ) -> tuple[Tensor, dict]:
        """Decoder features before the output layer.

        Args:
            prev_output_tokens: [B, T] token ids; with `incremental_state` the last one is new.
            encoder_out: what the encoder returned.
            incremental_state: holds the cache between steps; None runs whole sequences.
            alignment_layer: whose cross-attention is returned, averaged over all heads; unset: the
                last one's.

        Returns:
            features [B, T, C] (T = 1 with `incremental_state`), {"attn": [[B, T, S] or None]}.
            Weights of whole sequences are computed when `attn` is looked at. Those of a step are
            there if `alignment_layer` is given or `make_generation_fast_` did not switch them off.

        Raises:
            ValueError: `alignment_heads` is given: averages over some heads are not supported.
        """
        if alignment_heads is not None:
            raise ValueError("alignment_heads is not supported: attention is averaged over all")
        if incremental_state is not None:
            return self._step(prev_output_tokens, encoder_out, incremental_state, alignment_layer)
        x = self._embed(prev_output_tokens, None).transpose(0, 1)  # [T, B, C]
        # Padding on the right is never read by what counts; only left padding needs a mask.
        is_padding = prev_output_tokens.eq(self.padding_idx)
        mask = is_padding if full_context_alignment or bool(is_padding[:, 0].any()) else None
        source, source_is_padding = _source(encoder_out)
        beam = encoder_out.get("beam", [1])[0]
        if beam > 1 and source.shape[1] * beam == x.shape[1]:  # a row a hypothesis, as in fairseq
            source = source.repeat_interleave(beam, 1)
            if source_is_padding is not None:
                source_is_padding = source_is_padding.repeat_interleave(beam, 0)
        aligned = self.num_layers - 1 if alignment_layer is None else alignment_layer
        # What is computed later has no gradients where the layer is going to be run again.
        is_rerun = self.cfg.checkpoint_activations and torch.is_grad_enabled()
        need_weights: bool | Literal["later"] = True if is_rerun else "later"
        attn, inner_states = None, [x]
        for index, layer in enumerate(self.layers):
            x, weights = layer(
                x,
                source,
                source_is_padding,
                mask,
                is_causal=not full_context_alignment,
                need_weights=need_weights if index == aligned else False,
            )
            inner_states.append(x)
            attn = weights if weights is not None else attn
        if self.layer_norm is not None:
            x = self.layer_norm(x)
        weights_list = OnDemand(attn) if callable(attn) else [attn]
        return x.transpose(0, 1), {"attn": weights_list, "inner_states": inner_states}

    def _step(
        self, tokens: Tensor, encoder_out: dict, incremental_state: dict, alignment: int | None
    ) -> tuple[Tensor, dict]:
        """The newest position alone, for fairseq's search; all before it is in the cache."""
        rows = tokens.shape[0]
        if _CACHE_KEY not in incremental_state:
            beam = rows // encoder_out["encoder_out"][0].shape[1]
            incremental_state[_CACHE_KEY] = self.start_cache(encoder_out, beam)
        cache = incremental_state[_CACHE_KEY]
        if alignment is None and self.layers[-1].need_attn:
            alignment = self.num_layers - 1
        x, weights = self._next_features(
            tokens.view(-1, cache.beam, tokens.shape[1]), cache, alignment
        )
        attn = None
        if weights is not None:
            attn = cache.to_sentence_order(weights).reshape(rows, 1, -1)
        return x.reshape(rows, 1, -1), {"attn": [attn]}

    def start_cache(self, encoder_out: dict, beam: int) -> DecoderCache:
        """A cache for `beam` hypotheses a sentence that holds the source's keys and values."""
        native = self.decoding_weights().native
        source, is_padding = _source(encoder_out)
        window = self.layers[0].self_attn.window
        cache = DecoderCache(source.shape[1], beam, native=native, window=window)
        cache.store_source(list(self.source_keys_values(encoder_out)), is_padding, source.dtype)
        return cache

    def source_keys_values(self, encoder_out: dict) -> Iterator[tuple[Tensor, Tensor]]:
        """Each layer's keys and values [B, G, S, D] of the source, made as they are asked for."""
        return (
            layer.encoder_attn.project_kv(encoder_out["encoder_out"][0]) for layer in self.layers
        )

    def next_logits(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """One step: tokens so far [B, W, T] -> scores of the next one [B * W, V]."""
        return self._decoding_weights.output(
            self._next_features(tokens, cache, None)[0].flatten(0, 1)
        )

    def _next_features(
        self, tokens: Tensor, cache: DecoderCache, alignment: int | None
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens so far [B, W, T] -> features [B, W, C], weights [B, W, S] in the cache's order."""
        x = self._embed(tokens.flatten(0, 1), {}).view(cache.batch, cache.beam, -1)
        x, weights = self._decoding_weights.features(cache.to_cache_order(x), cache, alignment)
        return cache.to_sentence_order(x), weights

    def _embed(self, tokens: Tensor, incremental_state: dict | None) -> Tensor:
        """Token and position embeddings, [B, T, C]; the last position alone when decoding."""
        positions = None
        if self.embed_positions is not None:
            positions = self.embed_positions(tokens, incremental_state=incremental_state)
        if incremental_state is not None:
            tokens = tokens[:, -1:]
            positions = positions if positions is None else positions[:, -1:]
        return self.embed_words(tokens, positions)

    def embed_words(self, tokens: Tensor, positions: Tensor | None) -> Tensor:
        """Words [...] and the embeddings of their positions [..., C] together, [..., C]."""
        x = self.embed_scale * self.embed_tokens(tokens)
        if positions is not None:
            x = x + positions
        if self.layernorm_embedding is not None:
            x = self.layernorm_embedding(x)
        return self.dropout_module(x)

    def position_table(self) -> Tensor | None:
        """Embeddings [max_positions, C] of all target positions; None without positions."""
        if self.embed_positions is None:
            return None
        device = self.embed_tokens.weight.device
        word = self.padding_idx + 1  # any: padding alone has no position
        return self.embed_positions(torch.full((1, self.max_positions()), word, device=device))[0]

    def reorder_incremental_state_scripting(
        self, incremental_state: dict, new_order: Tensor
    ) -> None:
        """SequenceGenerator's hook: hypotheses moved, sentences may have left."""
        if _CACHE_KEY in incremental_state:
            incremental_state[_CACHE_KEY].reorder(new_order)


def _checkpointed(layer: Any, cfg) -> Any:
    """The layer, whose activations backward computes again where --checkpoint-activations is on."""
    if not cfg.checkpoint_activations:
        return layer
    return checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)


def _source(encoder_out: dict) -> tuple[Tensor, Tensor | None]:
    """Encoder output [S, B, C] and the mask of its padding [B, S], None if there is none."""
    masks = encoder_out["encoder_padding_mask"]
    is_padding = masks[0] if masks and bool(masks[0].any()) else None
    return encoder_out["encoder_out"][0], is_padding


def misfit(given: dict[str, Tensor], own: dict[str, Tensor]) -> str | None:
    """The first difference between a checkpoint's weights and a model's, in words."""
    for name, weight in given.items():
        if name not in own:
            return f"the checkpoint has {name}, which this model does not have"
        if own[name].shape != weight.shape:
            return (
                f"the checkpoint's {name} is {tuple(weight.shape)}, this model's "
                f"{tuple(own[name].shape)}"
            )
    missing = (name for name in own if name not in given)
    return next(
        (f"this model has {name}, which the checkpoint does not have" for name in missing), None
    )


@register_model(MODEL_NAME, dataclass=GroupedQueryTransformerConfig)
class GroupedQueryTransformerModel(TransformerModelBase):
    """Encoder-decoder Transformer; G = H is fairseq's own, with the same parameter names."""

    takes_packed = True  # by `forward`
    is_from_checkpoint = False  # the plugin's task says whether it was built to load one

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        prev_output_tokens: Tensor,
        *args: Any,
        packed: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict]:
        """As in fairseq; with `packed`, where that can be, the features of real tokens alone.

        These are [N, C], and "rows" has their places in `prev_output_tokens`, flattened.
        """
        if packed and can_pack(self):
            features, at = packed_features(self, src_tokens, prev_output_tokens)
            return features, {"rows": at.rows}
        return super().forward(src_tokens, src_lengths, prev_output_tokens, *args, **kwargs)

    @classmethod
    def add_args(cls, parser) -> None:
        """Command-line options without defaults, so that an architecture can set them."""
        gen_parser_from_dataclass(parser, GroupedQueryTransformerConfig(), delete_default=True)

    @classmethod
    def build_model(cls, cfg, task) -> "GroupedQueryTransformerModel":
        """Build the model and write derived widths into `cfg`.

        Raises:
            OptionError: options that are wrong, exclude each other or are refused.
        """
        try:
            with open_dict(cfg) if OmegaConf.is_config(cfg) else nullcontext():
                resolve(cfg)
            if cfg.share_all_embeddings and task.source_dictionary != task.target_dictionary:
                raise ValueError(
                    "the two languages have separate dictionaries, and this architecture has one "
                    "embedding for both, as named architectures do: prepare the data with "
                    "--joined-dictionary, or name the sizes with --arch gqa_transformer, which "
                    "shares embeddings only if --share-all-embeddings is given"
                )
            model = super().build_model(nested(cfg), task)
        except ValueError as error:
            raise OptionError(str(error)) from error
        model.args = cfg  # the flat options, as fairseq's own models keep them
        return model

    @classmethod
    def build_embedding(cls, cfg, dictionary, embed_dim, path=None) -> nn.Embedding:
        """As in fairseq: random, or those that a file at `path` has."""
        try:
            return super().build_embedding(cfg, dictionary, embed_dim, path)
        except (OSError, RuntimeError, StopIteration, ValueError) as error:
            reason = str(error).split("\n")[0] or "it is empty"
            raise ValueError(
                f"--encoder-embed-path, --decoder-embed-path: {path} holds no embeddings of width "
                f"{embed_dim} as fairseq reads them: {reason}"
            ) from error

    def load_state_dict(self, state_dict, strict=True, model_cfg=None, args=None):
        """As in fairseq, without the layers that --encoder-layers-to-keep and the decoder's leave.

        Raises:
            OptionError: `strict`, and the weights have other names or shapes than the model's.
                SystemExit alone while a training is restored: fairseq's trainer catches exceptions,
                and shows a traceback that does not say what is wrong.
        """
        self.upgrade_state_dict(state_dict)
        state_dict = prune_state_dict(state_dict, self._keeping_a_side(model_cfg or args))
        difference = misfit(state_dict, self.state_dict()) if strict else None
        if difference:
            error = OptionError(
                f"{difference}: give the options the checkpoint was trained with, or another "
                "--save-dir"
            )
            raise error if self.is_from_checkpoint else SystemExit(str(error))
        return super().load_state_dict(state_dict, strict, model_cfg, args)

    def _keeping_a_side(self, cfg):
        """The options, naming all layers of a side that keeps them: fairseq's pruning drops it."""
        kept = {side: f"{side}_layers_to_keep" for side in ("encoder", "decoder")}
        given = [side for side, option in kept.items() if getattr(cfg, option, None)]
        if len(given) == 1:
            (side,) = kept.keys() - given
            layers = range(getattr(self, side).num_layers)
            with open_dict(cfg) if OmegaConf.is_config(cfg) else nullcontext():
                setattr(cfg, kept[side], ",".join(map(str, layers)))
        return cfg

    def prepare_for_inference_(self, cfg) -> None:
        """As in fairseq.

        Raises:
            OptionError: --retain-dropout-modules without --retain-dropout.
        """
        names = getattr(cfg.generation, "retain_dropout_modules", None)
        if names is not None and not getattr(cfg.generation, "retain_dropout", False):
            raise OptionError("--retain-dropout-modules says where: give --retain-dropout as well")
        super().prepare_for_inference_(cfg)

    def make_generation_fast_(self, **kwargs: Any) -> None:
        """As in fairseq; `retain_dropout_modules` takes the names of fairseq's classes.

        Raises:
            OptionError: it names a class that the model does not have.
        """
        names = kwargs.get("retain_dropout_modules")
        if names is not None:
            kwargs["retain_dropout_modules"] = _own_names(names)
        super().make_generation_fast_(**kwargs)

    @classmethod
    def build_encoder(cls, cfg, src_dict, embed_tokens) -> GroupedQueryTransformerEncoder:
        return GroupedQueryTransformerEncoder(cfg, src_dict, embed_tokens)

    @classmethod
    def build_decoder(cls, cfg, tgt_dict, embed_tokens) -> GroupedQueryTransformerDecoder:
        return GroupedQueryTransformerDecoder(cfg, tgt_dict, embed_tokens)


# What stands for fairseq's classes here; their dropout goes by the name of its class.
_STAND_INS: dict[str, type] = {
    "TransformerEncoder": GroupedQueryTransformerEncoder,
    "TransformerDecoder": GroupedQueryTransformerDecoder,
    "TransformerEncoderLayer": GroupedQueryEncoderLayer,
    "TransformerDecoderLayer": GroupedQueryDecoderLayer,
    "MultiheadAttention": GroupedQueryAttention,
}


def _own_names(names: str | list[str]) -> list[str]:
    """--retain-dropout-modules, a list or one in a text, as names of the plugin's classes."""
    wanted = re.findall(r"\w+", names) if isinstance(names, str) else list(map(str, names))
    # fairseq's own example names the model, which has no dropout of its own.
    wanted = [name.removesuffix("Base") for name in wanted if name != "TransformerModel"]
    unknown = [name for name in wanted if name not in _STAND_INS]
    if unknown or not wanted:
        raise OptionError(
            f"--retain-dropout-modules {', '.join(unknown) or names}: no dropout has that name: "
            f"choose of {', '.join(_STAND_INS)}"
        )
    return [_STAND_INS[name].__name__ for name in wanted]


def architecture_of(
    model: GroupedQueryTransformerModel, name: str, residual: int = 0
) -> Architecture:
    """What was built, counted from the modules: widths, heads, layers, positions, vocabulary.

    Modules know no baseline, so `name` and `residual` are taken over: those of the architecture
    that was asked for, whose equality with the result is then a check of the built model.

    Raises:
        ValueError: the model is none that an `Architecture` describes, because its parameters are
            not as many: two vocabularies, norms in other places, 8-bit layers.
    """
    encoder, decoder = model.encoder, model.decoder
    encoder_layer, decoder_layer = encoder.layers[0], decoder.layers[0]
    built = Architecture(
        name=name,
        d_model=decoder.embed_tokens.embedding_dim,
        encoder_heads=_heads(encoder_layer.self_attn),
        decoder_heads=_heads(decoder_layer.self_attn),
        window=decoder_layer.self_attn.window,
        encoder_layers=len(encoder.layers),
        decoder_layers=len(decoder.layers),
        encoder_d_ff=encoder_layer.fc1.out_features,
        decoder_d_ff=decoder_layer.fc1.out_features,
        bias=decoder_layer.fc1.bias is not None,
        pre_norm=decoder_layer.normalize_before,
        vocab_size=decoder.output_projection.out_features,
        max_source_positions=_learned_positions(encoder.embed_positions),
        max_target_positions=_learned_positions(decoder.embed_positions),
        residual=residual,
        embeddings=len({id(matrix) for matrix in _embeddings(model)}),
    )
    counted = sum(parameter.numel() for parameter in model.parameters())
    if counted != built.parameters:
        raise ValueError(
            f"the model has {counted:,} parameters where its widths make {built.parameters:,}: "
            "an architecture has one vocabulary, the same norms and biases on both sides, and no "
            "layers in 8 bits"
        )
    return built


def _heads(attention: GroupedQueryAttention) -> Heads:
    return Heads(attention.num_heads, attention.head_dim, attention.num_kv_heads)


def _embeddings(model: GroupedQueryTransformerModel) -> list[Tensor | None]:
    """The matrices of source, target and output: the same one where they are shared."""
    encoder, decoder = model.encoder, model.decoder
    modules = encoder.embed_tokens, decoder.embed_tokens, decoder.output_projection
    return [getattr(module, "weight", None) for module in modules]


def _learned_positions(table: nn.Module | None) -> int:
    """How many positions are learned; 0 for sinusoids and for none."""
    return table.max_positions if isinstance(table, LearnedPositionalEmbedding) else 0
