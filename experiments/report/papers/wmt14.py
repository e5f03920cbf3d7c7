"""WMT14 English-German beside the papers: the one place where runs stand next to published rows.

Only runs on WMT14 itself and at Shazeer's shape come in, scored as he did: sacrebleu's tokenizer
intl, dev greedy, the filtered newstest2014 greedy and with beam 4 and GNMT's length penalty.
What has no run is shown as not run.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from experiments.metrics import METRICS
from experiments.records.measurement import Timing
from experiments.records.record import Finished, Record
from experiments.records.speed import Shape, training_timing
from experiments.report.cells import NOT_APPLICABLE, NOT_MEASURED, NOT_RUN, Table, number
from experiments.report.groups import Group, Row
from experiments.report.made_by import made_by
from experiments.report.papers.reference import Cell, Paper, PublishedTable, find_table
from experiments.report.selection import Value, find_timing, of_training, timed_shapes
from experiments.report.tables import signatures, timing_notes
from gqa_fairseq.architecture import Architecture, Variant
from gqa_fairseq.parity import BASELINES, is_variant, parity_table

DATA_NAME = "wmt14_en_de"
# Shazeer 2019, section 4.1.
BASELINE = BASELINES["wmt_en_de"]
WINDOW = 32  # of his local attention: the current and the previous 31 positions
# The rows of his table 1 in its order; the last four have heads that are together as wide as one.
TABLE1 = [
    BASELINE.resolve(variant)
    for variant in (
        Variant(),
        Variant(1),
        Variant(window=WINDOW),
        Variant(1, window=WINDOW),
        *(Variant(num_heads=h, head_dim=BASELINE.heads.head_dim // h) for h in (1, 2, 4, 8)),
    )
]
# The rows of the section: from most key/value heads to fewest, then the paper's others.
VARIANTS = list(dict.fromkeys(a.name for a in (*reversed(parity_table(BASELINE, "all")), *TABLE1)))
SHAZEER, AINSLIE = "1911.02150", "2305.13245"
FILTERED = "test_filtered"
METRIC = METRICS["bleu_intl"]
TOKENIZE = METRIC.tokenizer("de")
BEAM, LENGTH_PENALTY, LENGTH_ALPHA = 4, "gnmt", 0.6
TIMED_TOKENS = (128, 128)  # source, target
SIDES = ("encoder", "decoder")

INTRODUCTION = (
    "Published rows beside runs of this suite on the same data and at the same shape "
    f"({BASELINE.encoder_layers} + {BASELINE.decoder_layers} layers, d_model {BASELINE.d_model}, "
    f"{BASELINE.num_heads} heads of {BASELINE.heads.head_dim}, MHA's d_ff {BASELINE.mha_d_ff:,}). "
    f'"{NOT_RUN}": no such record is there. "{NOT_MEASURED}": no measurement has such a row. '
    f'"{NOT_APPLICABLE}": the paper has no such row. Runs on other data never stand here.'
)


def _attention(row: Architecture) -> str:
    """The first column of Shazeer's tables."""
    kind = "multi-head" if row.decoder_heads.is_multi_head else "multi-query"
    return kind if row.window is None else f"{kind} local"


# Where his tables have each row: table 2 has those with the baseline's query heads alone.
IN_TABLE1: dict[str, dict[str, Cell]] = {
    row.name: {
        "attention": _attention(row),
        "h": row.decoder_heads.num_heads,
        "d_k = d_v": row.decoder_heads.head_dim,
        "d_ff": row.decoder_d_ff,
    }
    for row in TABLE1
}
IN_TABLE2: dict[str, dict[str, Cell]] = {
    row.name: {"attention": _attention(row)}
    for row in TABLE1
    if row.decoder_heads.query_width == BASELINE.d_model
}


def is_eligible(record: Record) -> bool:
    """Whether a record may stand beside Shazeer's rows.

    A note of data_prep's says that the text was not checked to be WMT14.
    """
    is_paper_shape = is_variant(_layers_alone(record.architecture), BASELINE.multi_head)
    return record.data.name == DATA_NAME and not record.data.note and is_paper_shape


def _layers_alone(architecture: Architecture) -> Architecture:
    """Without vocabulary and positions, which the paper does not state."""
    return replace(architecture, vocab_size=0, max_source_positions=0, max_target_positions=0)


def wmt14_tables(groups: list[Group], papers: list[Paper]) -> list[Table]:
    """The tables of the section; `groups` are those of the report, in its order.

    Raises ExperimentError when the papers lack a row or a column.
    """
    quality = find_table(papers, SHAZEER, "Table 1")
    speed = find_table(papers, SHAZEER, "Table 2")
    shown: list[tuple[str, Group | None]] = [
        (f" (runs of section {section})", group)
        for section, group in enumerate(groups, start=1)
        if all(map(is_eligible, group.records))
    ]
    tables = []
    for which, group in shown or [("", None)]:
        tables += [_quality(group, quality, which), _speed(group, speed, which)]
    return [*tables, _ainslie(find_table(papers, AINSLIE, "Table 1"))]


def _quality(group: Group | None, paper: PublishedTable, which: str) -> Table:
    digits_and_values: dict[str, tuple[int, Value]] = {
        "ln(PPL) dev": (3, lambda result: result.evaluation.dev_nll_nats_per_token),
        "BLEU dev": (METRIC.digits, _bleu("dev", 1)),
        "BLEU test beam 1": (METRIC.digits, _bleu(FILTERED, 1)),
        "BLEU test beam 4": (METRIC.digits, _bleu(FILTERED, BEAM)),
    }
    columns = ["variant"]
    for name in digits_and_values:
        columns += [f"{name}: Shazeer 2019", f"{name}: here"]
    rows, sources = [], []
    for name, row in _rows(group):
        cells = [name]
        where = IN_TABLE1.get(name)
        for column, (digits, value) in digits_and_values.items():
            cells += [
                _published(paper, where, column),
                number(row.estimate(value) if row else None, digits),
            ]
        cells.append(number(row.estimate(of_training(lambda t: t.updates)) if row else None, 0))
        rows.append(cells)
        sources.append(row.source if row else "")
    lines = group.first.lines(FILTERED) if group else None
    scored = f"{lines:,}" if lines else NOT_RUN
    vocabulary = f"{group.first.data.vocab_size:,} pieces" if group else NOT_RUN
    notes = [
        "ln(PPL) is in nats per subword token of a model's own vocabulary (here "
        f"{vocabulary}; the paper does not state its own). Other pieces give another value at the "
        "same quality: compare the rows of one column, never the paper's column with ours.",
        f"BLEU is sacrebleu's with tok:{TOKENIZE} on detokenized text, as in the paper: dev is "
        f"`sacrebleu -t wmt13 -l en-de -tok {TOKENIZE}` (newstest2013), greedy; test is "
        f"`sacrebleu -t wmt14 -l en-de -tok {TOKENIZE}`, the filtered newstest2014 of 2,737 lines "
        f"(here {scored}). `wmt14/full` has 3,003; scores on it, with tok:13a and with fairseq's "
        "length penalty stand in the tables of the runs.",
        f"Beam {BEAM} is with {LENGTH_PENALTY.upper()}'s length penalty, alpha {LENGTH_ALPHA:g}.",
        *(f"Shazeer 2019: {condition}." for condition in paper.conditions),
    ]
    if group:
        shown = (s for s in signatures(group, FILTERED) if f"tok:{TOKENIZE}" in s)
        notes += [*(f"`{signature}`" for signature in shown), *made_by(group.records)]
    return Table(f"Quality{which}", [*columns, "updates here"], rows, notes, sources)


def _speed(group: Group | None, paper: PublishedTable, which: str) -> Table:
    searches = {"greedy": 1, "beam 4": BEAM}
    shape = _timed_shape(group) if group else None
    columns = ["variant"]
    for name in ("training", *(f"{search}, encoder + decoder" for search in searches)):
        columns += [f"{name} µs/token: Shazeer 2019", f"{name} µs/token: here"]
    rows, sources = [], []
    for name, row in _rows(group):
        where = IN_TABLE2.get(name)
        cells = [name, _published(paper, where, "training"), _training_us(group, row)]
        for search, beam in searches.items():
            published = [_published(paper, where, f"{search} {side}") for side in SIDES]
            timing = find_timing(group, beam, shape) if group else None
            cells += [_sum(published), _measured(row, timing)]
        rows.append(cells)
        sources.append(row.source if row else "")
    notes = [
        "Compare the rows of one column: the machines are not the same.",
        *(f"Shazeer 2019, on a TPUv2: {condition}." for condition in paper.conditions),
    ]
    if group:
        timings = [t for beam in searches.values() if (t := find_timing(group, beam, shape))]
        if shape and timings:
            notes += [f"Here: batch {shape[0]}.", *timing_notes(group, timings)]
        notes += made_by(group.records)
    return Table(f"Speed{which}", columns, rows, notes, sources)


def _ainslie(paper: PublishedTable) -> Table:
    """Published rows alone: no model of this suite is a T5."""
    names = ("model", "T_infer", "WMT")
    columns = ["model", "T_infer s: Ainslie et al. 2023", "WMT BLEU: Ainslie et al. 2023", "here"]
    rows = [
        [*(paper.shown({"model": row[0]}, name) for name in names), NOT_RUN] for row in paper.rows
    ]
    notes = [
        "Pre-trained T5 models with up to 64 heads, which this suite does not train; GQA-8 has 8 "
        "of 64. Their placement of grouped attention, in the decoder alone, is what variants "
        "ending in -dec have.",
        *(f"Ainslie et al. 2023: {condition}." for condition in paper.conditions),
    ]
    return Table("The GQA paper's WMT14 column", columns, rows, notes)


def _rows(group: Group | None) -> Iterable[tuple[str, Row | None]]:
    """The papers' variants, run or not, then the others that the group has."""
    found = {row.name: row for row in group.rows} if group else {}
    yield from ((name, found.get(name)) for name in VARIANTS)
    yield from ((name, row) for name, row in found.items() if name not in VARIANTS)


def _published(paper: PublishedTable, where: Mapping[str, Cell] | None, column: str) -> str:
    return NOT_APPLICABLE if where is None else paper.shown(where, column)


def _bleu(split: str, beam: int) -> Value:
    """Reads a result's BLEU as the paper counts it."""

    def value(result: Finished) -> float | None:
        for score in result.evaluation.scores:
            penalty = (score.length_penalty, score.length_alpha)
            if (score.split, score.metric, score.beam) == (split, METRIC.name, beam) and (
                beam == 1 or penalty == (LENGTH_PENALTY, LENGTH_ALPHA)
            ):
                return score.value
        return None

    return value


def _timed_shape(group: Group) -> Shape | None:
    """The largest batch that was timed at the paper's lengths."""
    return max((shape for shape in timed_shapes(group) if shape[1:] == TIMED_TOKENS), default=None)


def _training_us(group: Group | None, row: Row | None) -> str:
    if group is None or row is None:
        return NOT_RUN
    timing = training_timing(group.measurement) if group.measurement else None
    samples = row.samples(timing)
    return _us(samples.us_per_token("total")) if samples else NOT_MEASURED


def _measured(row: Row | None, timing: Timing | None) -> str:
    if row is None:
        return NOT_RUN
    samples = row.samples(timing)
    if samples is None:
        return NOT_MEASURED
    return _sum([_us(samples.us_per_token("encoder")), _us(samples.us_per_token("decoder"))])


def _us(us_per_token: float | None) -> str:
    return NOT_MEASURED if us_per_token is None else f"{us_per_token:,.1f}"


def _sum(cells: Iterable[str]) -> str:
    """`encoder + decoder`, or what stands for them when one has no number."""
    encoder, decoder = cells
    missing = [cell for cell in (encoder, decoder) if cell in (NOT_MEASURED, NOT_APPLICABLE)]
    return missing[0] if missing else f"{encoder} + {decoder}"
