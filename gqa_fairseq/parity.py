"""Which d_ff keeps the parameter count when key/value heads are removed: exact integer arithmetic.

Fewer key/value heads make the K and V projections narrower, fewer or narrower query heads all four
projections; the weights saved go into wider feed-forward layers (FFN), so that variants differ in
attention and not in size (Shazeer 2019, section 4.1: d_ff 4096 -> 5440 for multi-query attention,
6784 for heads that are together as wide as one). Nothing here imports torch.

    python -m gqa_fairseq.parity                      # the paper's shape
    python -m gqa_fairseq.parity --d-model 512 --mha-d-ff 2048 --placement decoder
    python -m gqa_fairseq.parity --query-heads 4 --head-dim 32    # other heads than the baseline's
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace

from gqa_fairseq.architecture import (
    BASELINE_NAME,
    FEED_FORWARDS,
    Architecture,
    FeedForward,
    Heads,
    Placement,
    Variant,
    check_placement,
    check_window,
    head_dim_of,
)


@dataclass(frozen=True)
class Baseline:
    """The multi-head model of a comparison; the defaults are Shazeer 2019's for WMT14.

    `vocab_size` 0 counts the layers alone. Norms stand before each block with `pre_norm`, which is
    this suite's choice: the paper does not say.
    """

    d_model: int = 1024
    num_heads: int = 8
    mha_d_ff: int = 4096
    encoder_layers: int = 6
    decoder_layers: int = 6
    bias: bool = False
    pre_norm: bool = True
    vocab_size: int = 0
    max_source_positions: int = 0
    max_target_positions: int = 0

    def __post_init__(self) -> None:
        if min(self.d_model, self.num_heads, self.mha_d_ff) < 1:
            raise ValueError("d_model, num_heads and d_ff must be at least 1")
        if min(self.encoder_layers, self.decoder_layers) < 1:
            raise ValueError("the encoder and the decoder need at least one layer each")
        head_dim_of(self.d_model, self.num_heads)

    @property
    def heads(self) -> Heads:
        """As many key/value heads as query heads."""
        return Heads(self.num_heads, head_dim_of(self.d_model, self.num_heads), self.num_heads)

    @property
    def multi_head(self) -> Architecture:
        """The baseline itself."""
        return self._architecture(BASELINE_NAME, self.heads, self.heads, None)

    def resolve(self, variant: Variant) -> Architecture:
        """The architecture that `variant` asks for, with both d_ff as whole numbers.

        A matched d_ff is the largest with which the model has no more parameters than the baseline.
        Placement `all` widens every FFN by the same amount, `decoder` the decoder's alone.

        Raises:
            ValueError: one line that says what cannot be: a head count that does not divide, an
                unknown placement, a number below 1, or heads that no d_ff makes up for.
        """
        check_placement(variant.placement)
        check_window(variant.window)
        if variant.d_ff not in FEED_FORWARDS:
            raise ValueError(
                f"d_ff {variant.d_ff!r} is unknown: choose {' or '.join(FEED_FORWARDS)}"
            )
        own = self.heads
        changed = Heads.checked(
            own.num_heads if variant.num_heads is None else variant.num_heads,
            own.head_dim if variant.head_dim is None else variant.head_dim,
            variant.num_kv_heads,
        )
        encoder_heads = changed if variant.placement == "all" else own
        name = _name(changed, own, variant.placement, variant.window)
        kept = self._architecture(name, encoder_heads, changed, variant.window)
        encoder_d_ff, decoder_d_ff = self.matched_d_ff(encoder_heads, changed, variant.placement)
        if decoder_d_ff == self.mha_d_ff:
            return kept
        if variant.d_ff == "kept":
            # The name says so only where it makes a difference.
            return replace(kept, name=f"{name}-ff{self.mha_d_ff}")
        check_matched(decoder_d_ff, changed)
        matched = replace(kept, encoder_d_ff=encoder_d_ff, decoder_d_ff=decoder_d_ff)
        return replace(matched, residual=matched.parameters - self.multi_head.parameters)

    def matched_d_ff(
        self, encoder_heads: Heads, decoder_heads: Heads, placement: Placement
    ) -> tuple[int, int]:
        """The encoder's and the decoder's d_ff that make up for the parameters of other heads.

        They are below 1 where the heads alone have as many parameters as the whole baseline.
        """
        kept = self._architecture("", encoder_heads, decoder_heads, None)
        in_encoder = placement == "all"
        ffns = self.decoder_layers + (self.encoder_layers if in_encoder else 0)
        per_unit_of_width = kept.ffn_parameters(1) - kept.ffn_parameters(0)
        # Nothing is saved, and d_ff shrinks, where the heads together are wider than d_model.
        d_ff = self.mha_d_ff + -kept.residual // (ffns * per_unit_of_width)
        return (d_ff if in_encoder else self.mha_d_ff), d_ff

    def _architecture(
        self, name: str, encoder_heads: Heads, decoder_heads: Heads, window: int | None
    ) -> Architecture:
        """With the baseline's d_ff."""
        made = Architecture(
            name=name,
            d_model=self.d_model,
            encoder_heads=encoder_heads,
            decoder_heads=decoder_heads,
            window=window,
            encoder_layers=self.encoder_layers,
            decoder_layers=self.decoder_layers,
            encoder_d_ff=self.mha_d_ff,
            decoder_d_ff=self.mha_d_ff,
            bias=self.bias,
            pre_norm=self.pre_norm,
            vocab_size=self.vocab_size,
            max_source_positions=self.max_source_positions,
            max_target_positions=self.max_target_positions,
        )
        if encoder_heads == decoder_heads == self.heads:
            return made
        return replace(made, residual=made.parameters - self.multi_head.parameters)


# The shapes that have a name in fairseq: {mha,gqa4,gqa2,mqa}_transformer_NAME.
BASELINES = {
    # Shazeer 2019, section 4.1: 6 layers, d_model 1024, d_ff 4096, 8 heads x 128. Its length limit
    # of 256 is an option of the task: --max-source-positions, --max-target-positions.
    "wmt_en_de": Baseline(),
    "base": Baseline(d_model=512, mha_d_ff=2048),
    "small": Baseline(d_model=192, mha_d_ff=768, encoder_layers=2, decoder_layers=2),
}
# The paper's model with its length limit, and with as many words as WMT14 has when it is prepared:
# 32,000 pieces and padding.
PAPER = replace(
    BASELINES["wmt_en_de"], vocab_size=32_001, max_source_positions=256, max_target_positions=256
)


def is_variant(architecture: Architecture, multi_head: Architecture) -> bool:
    """Whether the baseline that `multi_head` is resolves some `Variant` to `architecture`."""
    if not multi_head.is_multi_head or architecture.embeddings != multi_head.embeddings:
        return False
    # A baseline has one embedding; with more, what else there is must agree all the same.
    architecture, multi_head = (replace(one, embeddings=1) for one in (architecture, multi_head))
    baseline = Baseline(
        d_model=multi_head.d_model,
        num_heads=multi_head.decoder_heads.num_heads,
        mha_d_ff=multi_head.decoder_d_ff,
        encoder_layers=multi_head.encoder_layers,
        decoder_layers=multi_head.decoder_layers,
        bias=multi_head.bias,
        pre_norm=multi_head.pre_norm,
        vocab_size=multi_head.vocab_size,
        max_source_positions=multi_head.max_source_positions,
        max_target_positions=multi_head.max_target_positions,
    )
    if multi_head != baseline.multi_head:
        return False
    heads = architecture.decoder_heads
    is_kept = architecture.decoder_d_ff == multi_head.decoder_d_ff
    variant = Variant(
        heads.num_kv_heads,
        architecture.placement,
        heads.num_heads,
        heads.head_dim,
        architecture.window,
        "kept" if is_kept else "matched",
    )
    try:
        return baseline.resolve(variant) == architecture
    except ValueError:  # of another baseline, whose d_ff can make up for such heads
        return False


def regrouped(
    architecture: Architecture, num_kv_heads: int, placement: Placement, d_ff: FeedForward
) -> Architecture:
    """The same model with another number of key/value heads; its own size is what d_ff matches.

    With placement `decoder` the encoder stays as it is. A matched d_ff is the largest with which
    the model has no more parameters than before.

    Raises:
        ValueError: one line that says what cannot be, as Baseline.resolve.
    """
    check_placement(placement)
    heads = architecture.decoder_heads
    decoder_heads = Heads.checked(heads.num_heads, heads.head_dim, num_kv_heads)
    encoder_heads, sides = architecture.encoder_heads, ["decoder"]
    if placement == "all":
        own = encoder_heads
        encoder_heads = Heads.checked(own.num_heads, own.head_dim, num_kv_heads)
        sides.append("encoder")
    name = _name(decoder_heads, heads, placement, architecture.window)
    kept = replace(
        architecture,
        name=name,
        encoder_heads=encoder_heads,
        decoder_heads=decoder_heads,
        residual=0,
    )
    saved = architecture.parameters - kept.parameters
    if d_ff == "kept" or not saved:
        return replace(kept, residual=-saved)
    ffns = sum(getattr(kept, f"{side}_layers") for side in sides)
    wider = saved // (ffns * (kept.ffn_parameters(1) - kept.ffn_parameters(0)))
    widths = {f"{side}_d_ff": getattr(kept, f"{side}_d_ff") + wider for side in sides}
    check_matched(min(widths.values()), decoder_heads)
    matched = replace(kept, **widths)
    return replace(matched, residual=matched.parameters - architecture.parameters)


def check_matched(d_ff: int, heads: Heads) -> None:
    """Raise ValueError unless a d_ff that makes up for these heads has at least one unit."""
    if d_ff < 1:
        raise ValueError(
            f"head_dim {heads.head_dim} of {heads.num_heads} heads is so wide that no d_ff keeps "
            "the parameter count: choose fewer or narrower heads, or set d_ff"
        )


def parity_table(
    baseline: Baseline,
    placement: Placement,
    num_heads: int | None = None,
    head_dim: int | None = None,
) -> list[Architecture]:
    """The variants for each number of key/value heads that divides the heads, from MQA to MHA.

    Unset heads and head widths are the baseline's.

    Raises:
        ValueError: as Baseline.resolve.
    """
    multi_head = baseline.resolve(Variant(None, placement, num_heads, head_dim))
    most = multi_head.num_kv_heads
    return [
        baseline.resolve(Variant(g, placement, num_heads, head_dim))
        for g in range(1, most + 1)
        if most % g == 0
    ]


def _name(changed: Heads, baseline: Heads, placement: Placement, window: int | None) -> str:
    """`mha`, `gqa4`, `mqa`, and what else is not the baseline's.

    `-4x32` for 4 heads of 32, `-dec` where the encoder keeps the baseline's heads, `-w32` for a
    window of 32 positions.
    """
    name = "mqa" if changed.num_kv_heads == 1 else f"gqa{changed.num_kv_heads}"
    if changed.is_multi_head:
        name = BASELINE_NAME
    if replace(changed, num_kv_heads=baseline.num_kv_heads) != baseline:
        name += f"-{changed.num_heads}x{changed.head_dim}"
    if changed != baseline and placement == "decoder":
        name += "-dec"
    return name if window is None else f"{name}-w{window}"


def main(argv: list[str] | None = None) -> int:
    """Print the parity table of a shape, as text or as JSON; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m gqa_fairseq.parity", description="d_ff that keeps the parameter count."
    )
    for name, default in asdict(Baseline()).items():
        if not isinstance(default, bool):
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--placement", default="all", help="all (default) or decoder")
    parser.add_argument("--query-heads", type=int, help="query heads (default: the baseline's)")
    parser.add_argument("--head-dim", type=int, help="width of a head (default: the baseline's)")
    parser.add_argument("--bias", action="store_true", help="projections and FFNs have biases")
    parser.add_argument("--post-norm", action="store_true", help="no final norms")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    args = vars(parser.parse_args(argv))
    variant = [args.pop(name) for name in ("placement", "query_heads", "head_dim")]
    as_json = args.pop("json")
    try:
        rows = parity_table(Baseline(pre_norm=not args.pop("post_norm"), **args), *variant)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    columns = ("num_kv_heads", "encoder_d_ff", "decoder_d_ff", "parameters", "residual")
    if as_json:
        print(json.dumps([{name: getattr(row, name) for name in columns} for row in rows]))
        return 0
    print(f"{'G':>4} {'encoder d_ff':>13} {'decoder d_ff':>13} {'parameters':>14} {'residual':>9}")
    for row in rows:
        print(
            f"{row.num_kv_heads:>4} {row.encoder_d_ff:>13} {row.decoder_d_ff:>13} "
            f"{row.parameters:>14,} {row.residual:>9,}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
