"""The tables of a group: every number from its records, every unit in a heading.

Quality is from the records, speed from the group's one measurement: microseconds and ratios of a
table are of the same rounds.
"""

from dataclasses import replace

from experiments.records.measurement import (
    Samples,
    Timing,
    median_ratio,
    search_label,
)
from experiments.records.parts import MODEL_FREE, ModelFreeScore
from experiments.records.record import Diverged, Record
from experiments.records.speed import decoder_speed_up, training_timing
from experiments.report.cells import (
    NOT_APPLICABLE,
    NOT_MEASURED,
    NOT_RUN,
    Table,
    mebibytes,
    number,
    size_cells,
    times_as_fast,
)
from experiments.report.groups import Group, Row, source_of
from experiments.report.made_by import distinct, made_by, measured_by
from experiments.report.selection import (
    HEADLINE_METRIC,
    ScoreKind,
    all_scores,
    decoding_timings,
    group_engine,
    headline_kind,
    headline_timing,
    model_free_scores,
    of_training,
    quality_splits,
    score_kinds,
    score_value,
    searches,
    test_splits,
    timed_shapes,
)
from gqa_fairseq.architecture import Architecture

# In a terminal the cells of such a column stand below those of the column before it.
BELOW = ""


def overview_columns(group: Group) -> dict[str, str | None]:
    """Headings of the overview, with those for a terminal (None: not shown there, or BELOW)."""
    split = _headline_split(group) or "test"
    labels = [search_label(beam) for beam in searches(group)]
    columns: dict[str, str | None] = {
        "variant": "variant",
        "kv heads": "G",
        "d_ff enc / dec": "d_ff",
        "parameters": "parameters",
        "residual": None,
        "seeds": None,
        "dev nats/token": "dev\nnats",
        "dev perplexity": "dev\nPPL",
    }
    for label in labels:
        columns[f"{split} {HEADLINE_METRIC.label} {label}"] = f"{HEADLINE_METRIC.label}\n{label}"
    for label in labels:
        columns[f"decoder µs/token {label}"] = f"µs/token\n{label}"
        columns[f"decoder speed-up over MHA {label}"] = BELOW
    return columns


def overview(group: Group) -> Table:
    """One row a variant: size, quality and decoding cost."""
    split = _headline_split(group)
    beams = searches(group)
    timings = [headline_timing(group, beam) for beam in beams]
    columns = list(overview_columns(group))
    rows = []
    sources = [*(row.source for row in group.rows), *map(source_of, group.diverged)]
    for row in group.rows:
        rows.append(
            [
                row.name,
                *_size(row.architecture),
                ", ".join(str(record.seed) for record in row.records),
                number(row.estimate(lambda r: r.evaluation.dev_nll_nats_per_token), 3),
                number(row.estimate(lambda r: r.evaluation.dev_perplexity), 2),
                *(_headline_score(group, row, split, beam) for beam in beams),
                *(cell for timing in timings for cell in _speed(timing, row.samples(timing))),
            ]
        )
    for record in group.diverged:
        known = [diverged_name(record), *_size(record.architecture), str(record.seed)]
        rows.append(known + [NOT_APPLICABLE] * (len(columns) - len(known)))
    if split:
        for scores in model_free_scores(group, split):
            if HEADLINE_METRIC.name in scores:
                value = f"{scores[HEADLINE_METRIC.name].value:.{HEADLINE_METRIC.digits}f}"
                cells = dict.fromkeys(columns, NOT_APPLICABLE) | {columns[0]: _free_name(scores)}
                scored = f"{split} {HEADLINE_METRIC.label} "
                cells |= {column: value for column in columns if column.startswith(scored)}
                rows.append(list(cells.values()))
                sources.append("")
    notes = metric_notes(group, split) if split else []
    kinds = [headline_kind(group, split, beam) for beam in beams if beam > 1] if split else []
    notes += distinct(_penalty_text(kind) for kind in kinds if kind)
    shown = [timing for timing in timings if timing]
    if shown:
        batch, source, target = timed_shapes(group)[0]
        notes.append(f"Decoding: batch {batch}, source {source:,}, target {target:,} tokens.")
        notes += timing_notes(group, shown)
    return Table("Overview", columns, rows, notes, sources)


def quality(group: Group, split: str) -> Table:
    """All scores on one split, with the signatures."""
    kinds = score_kinds(group, split)
    beamed = [kind for kind in kinds if kind.beam > 1]
    penalties = {(kind.length_penalty, kind.length_alpha) for kind in beamed}
    columns = ["variant"]
    for kind in kinds:
        penalty = f" ({kind.length_penalty} alpha {kind.length_alpha:g})"
        columns.append(kind.heading + (penalty if len(penalties) > 1 and kind.beam > 1 else ""))
    rows = [
        [
            row.name,
            *(number(row.estimate(score_value(split, k)), k.metric.digits) for k in kinds),
        ]
        for row in group.rows
    ]
    for scores in model_free_scores(group, split):
        cells = [
            f"{scores[kind.name].value:.{kind.metric.digits}f}" if kind.name in scores else NOT_RUN
            for kind in kinds
        ]
        rows.append([_free_name(scores), *cells])
    part = " of test" if split not in group.first.data.splits else ""
    notes = [f"{group.first.lines(split):,} lines{part}, engine {group_engine(group)}."]
    if len(penalties) == 1:
        notes.append(_penalty_text(beamed[0]))
    notes += [f"`{signature}`" for signature in signatures(group, split)]
    sources = [*_sources(group), *[""] * (len(rows) - len(group.rows))]
    return Table(f"Translation quality on {split}", columns, rows, notes, sources)


def decoding(group: Group, timing: Timing) -> Table:
    """Time and memory on one workload, encoder and decoder apart."""
    columns = [
        "variant",
        "encoder µs/token",
        "decoder µs/token",
        "decoder speed-up over MHA",
        "KV cache MiB",
        "peak memory MiB",
    ]
    rows = []
    for row in group.rows:
        samples = row.samples(timing)
        if samples is None:
            rows.append([row.name] + [NOT_MEASURED] * (len(columns) - 1))
            continue
        cache, peak = samples.kv_cache_bytes, samples.peak_memory_bytes
        rows.append(
            [
                row.name,
                _us(samples.us_per_token("encoder")),
                *_speed(timing, samples),
                NOT_APPLICABLE if cache is None else mebibytes(cache),
                NOT_MEASURED if peak is None else mebibytes(peak),
            ]
        )
    notes = timing_notes(group, [timing])
    kinds = {s.peak_memory_kind for row in group.rows if (s := row.samples(timing))}
    notes += [f"Memory is {kind.replace('_', ' ')}." for kind in sorted(filter(None, kinds))]
    return Table(f"Decoding: {timing.workload.title}", columns, rows, notes, _sources(group))


def timing_notes(group: Group, timings: list[Timing]) -> list[str]:
    """How timings of the group's measurement were taken, and what they were taken with."""
    notes = []
    for rounds in dict.fromkeys((timing.rounds, timing.warmup_runs) for timing in timings):
        confidence = median_ratio([1.0] * rounds[0]).confidence
        notes.append(
            f"Microseconds per output token: medians of {rounds[0]} rounds in which the variants "
            f"took turns, after {rounds[1]} of warm-up. A speed-up is the median of the ratios of "
            f"the rounds; in brackets an interval that has the true median with {confidence:.0%} "
            "confidence."
        )
    found = [s for row in group.rows for timing in timings if (s := row.samples(timing))]
    engines = distinct(samples.contender.engine for samples in found)
    weights = distinct(samples.contender.weights for samples in found)
    notes.append(f"Measured with engine {', '.join(engines)}, {' and '.join(weights)} weights.")
    return notes + ([measured_by(group.measurement)] if group.measurement else [])


def training(group: Group) -> Table:
    """What training cost."""
    timing = training_timing(group.measurement) if group.measurement else None
    columns = [
        "variant",
        "updates",
        "target tokens/update",
        "training µs/target token (fixed shape)",
        "training µs/target token (real batches)",
        "peak memory of training MiB",
    ]
    rows = []
    for row in group.rows:
        samples = row.samples(timing)
        memory = row.estimate(of_training(lambda t: t.peak_memory_bytes))
        rows.append(
            [
                row.name,
                number(row.estimate(of_training(lambda t: t.updates)), 0),
                number(row.estimate(of_training(lambda t: t.target_tokens_per_update)), 0),
                _us(samples.us_per_token("total")) if samples else NOT_MEASURED,
                number(row.estimate(of_training(lambda t: t.running_us_per_target_token)), 1),
                mebibytes(memory.mean) if memory else NOT_RUN,
            ]
        )
    trained = [result.training for result in group.results if result.training]
    notes = distinct(f"Training on {t.processes} × {t.device} in {t.precision}." for t in trained)
    notes += distinct(
        f"The config asks for {t.target_tokens_per_update_wanted:,} target tokens an update."
        for t in trained
        if t.target_tokens_per_update_wanted
    )
    still = [
        f"{row.name} seed {record.seed}"
        for row in group.rows
        for record in row.records
        if (training := record.training)
        and training.running_us_per_target_token != training.us_per_target_token
    ]
    if still:
        notes.append(
            f"Real batches: without the time in which trainings stood still ({', '.join(still)})."
        )
    notes += distinct(f"Memory is {t.peak_memory_kind.replace('_', ' ')}." for t in trained)
    if timing and group.measurement:
        notes.append(f"Fixed shape: {timing.workload.title}, median of {timing.rounds} rounds.")
        notes.append(measured_by(group.measurement))
    return Table("Training cost and memory", columns, rows, notes, _sources(group))


def group_tables(group: Group) -> list[Table]:
    """All tables of a group, the overview first, each with what made its numbers below."""
    tables = [
        overview(group),
        *(quality(group, split) for split in quality_splits(group)),
        *(decoding(group, timing) for timing in decoding_timings(group)),
        training(group),
    ]
    below = made_by(group.records)
    return [replace(table, notes=[*table.notes, *below]) for table in tables]


def signatures(group: Group, split: str) -> list[str]:
    """sacrebleu's signatures of the scores on `split`, each after its metric."""
    return distinct(f"{score.metric}: {score.signature}" for score in all_scores(group, split))


def metric_notes(group: Group, split: str) -> list[str]:
    """Which tokenizer the headline's metric used: its signature says so."""
    return distinct(
        f"{HEADLINE_METRIC.label} is sacrebleu's with tokenizer {part.removeprefix('tok:')}; a "
        "baseline has no search."
        for score in all_scores(group, split)
        if score.metric == HEADLINE_METRIC.name
        for part in score.signature.split("|")
        if part.startswith("tok:")
    )


def diverged_name(record: Record) -> str:
    """Such as `mqa: diverged after update 120`."""
    assert isinstance(record.result, Diverged)
    return f"{record.variant}: diverged after update {record.result.after_update:,}"


def _sources(group: Group) -> list[str]:
    return [row.source for row in group.rows]


def _headline_split(group: Group) -> str | None:
    """The first of the test splits."""
    return next(iter(test_splits(group)), None)


def _headline_score(group: Group, row: Row, split: str | None, beam: int) -> str:
    kind = headline_kind(group, split, beam) if split else None
    if split is None or kind is None:
        return NOT_RUN
    return number(row.estimate(score_value(split, kind)), kind.metric.digits)


def _size(architecture: Architecture) -> list[str]:
    return [*size_cells(architecture), f"{architecture.residual:,}"]


def _us(us_per_token: float | None) -> str:
    return NOT_APPLICABLE if us_per_token is None else f"{us_per_token:,.1f}"


def _speed(timing: Timing | None, samples: Samples | None) -> list[str]:
    """Decoder microseconds per token, and the speed-up over MHA."""
    if timing is None or samples is None:
        return [NOT_MEASURED, NOT_MEASURED]
    ratio = decoder_speed_up(timing, samples)
    faster = NOT_APPLICABLE if ratio is None else times_as_fast(ratio)
    return [_us(samples.us_per_token("decoder")), faster]


def _free_name(scores: dict[str, ModelFreeScore]) -> str:
    """Such as `baseline: copied source`, of its scores by metric."""
    any_score, *_ = scores.values()
    return f"baseline: {MODEL_FREE[any_score.name]}"


def _penalty_text(kind: ScoreKind) -> str:
    formula = "GNMT" if kind.length_penalty == "gnmt" else kind.length_penalty
    return f"Beam search with {formula}'s length penalty, alpha {kind.length_alpha:g}."
