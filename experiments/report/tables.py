"""The tables of a group: every number from its records, every unit in a heading."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from experiments.record_parts import Engine, Hardware
from experiments.report.groups import DECISIVE_VERSIONS, Estimate, Group, Row
from experiments.report.selection import (
    Shape,
    baseline_scores,
    decoder_us,
    find_timing,
    fixed_shape_training_us,
    group_engine,
    headline_kind,
    quality_splits,
    score_kinds,
    score_value,
    search_label,
    searches,
    stage_value,
    test_splits,
    timed_engines,
    timed_shapes,
    timing_value,
)

NOT_RUN = "not run"
NOT_APPLICABLE = "–"
BASELINES = {"copy": "baseline: copied source", "nearest": "baseline: nearest training line"}


@dataclass(frozen=True)
class Table:
    """Cells as text; `notes` say what the numbers need to be understood."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def number(estimate: Estimate | None, digits: int) -> str:
    """Mean, with ± the standard deviation where there are several runs."""
    if estimate is None:
        return NOT_RUN
    mean = f"{estimate.mean:,.{digits}f}"
    if estimate.deviation is None:
        return mean
    return f"{mean} ± {estimate.deviation:.{digits}f}"


def mebibytes(estimate: Estimate | None) -> str:
    """Bytes as MiB with one digit."""
    if estimate is None:
        return NOT_RUN
    return f"{estimate.mean / 2**20:,.1f}"


def overview_columns(group: Group) -> dict[str, str | None]:
    """Headings of the overview, with the short ones for a terminal (None: not shown there)."""
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
        columns[f"{split} BLEU {label}"] = f"BLEU\n{label}"
    for label in labels:
        columns[f"decoder µs/token {label} (speed-up over MHA)"] = f"µs/token\n{label}"
    return columns


def overview(group: Group) -> Table:
    """One row a variant: size, quality and decoding cost."""
    engine = group_engine(group)
    shapes = timed_shapes(group)
    shape = shapes[0] if shapes else None
    split = _headline_split(group)
    beams = searches(group)
    columns = list(overview_columns(group))
    rows = []
    for row in group.rows:
        model = row.first.model
        rows.append(
            [
                row.name,
                str(model.num_kv_heads),
                f"{model.encoder_d_ff} / {model.decoder_d_ff}",
                f"{model.parameters:,}",
                f"{model.residual:,}",
                ", ".join(str(record.seed) for record in row.records),
                number(row.estimate(stage_value("evaluation", "dev_nll_nats_per_token")), 3),
                number(row.estimate(stage_value("evaluation", "dev_perplexity")), 2),
                *(_headline_score(group, row, split, beam) for beam in beams),
                *(_with_speed_up(group, row, engine, beam, shape) for beam in beams),
            ]
        )
    if split:
        for baseline, value in _baseline_cells(group, split, "bleu", "13a").items():
            cells = dict.fromkeys(columns, NOT_APPLICABLE) | {columns[0]: BASELINES[baseline]}
            cells |= {name: value for name in columns if "BLEU" in name}
            rows.append(list(cells.values()))
    notes = ["BLEU is sacrebleu's with tokenizer 13a; a baseline has no search."]
    kinds = [headline_kind(group, split, beam) for beam in beams if beam > 1] if split else []
    notes += _distinct(_penalty_text(k.length_penalty, k.length_alpha) for k in kinds if k)
    if shape:
        notes.append(f"Decoding: {_shape_text(shape)}, engine {engine}.")
    return Table("Overview", columns, rows, notes)


def quality(group: Group, split: str) -> Table:
    """All scores on one split, with the signatures."""
    kinds = score_kinds(group, split)
    several_engines = len({kind.engine for kind in kinds}) > 1
    penalties = {(kind.length_penalty, kind.length_alpha) for kind in kinds if kind.beam > 1}
    columns = ["variant"]
    for kind in kinds:
        details: list[str] = [kind.engine] if several_engines else []
        if len(penalties) > 1 and kind.beam > 1:
            details.append(f"{kind.length_penalty} alpha {kind.length_alpha:g}")
        columns.append(kind.heading + (f" ({', '.join(details)})" if details else ""))
    rows = [
        [row.name, *(number(row.estimate(score_value(split, kind)), 1) for kind in kinds)]
        for row in group.rows
    ]
    for baseline in sorted(baseline_scores(group, split)):
        cells = [
            _baseline_cells(group, split, kind.metric, kind.tokenize).get(baseline, NOT_RUN)
            for kind in kinds
        ]
        rows.append([BASELINES[baseline], *cells])
    lines = group.first.data.lines(split)
    part = " of test" if split in group.first.data.subsets else ""
    engines = ", ".join(sorted({kind.engine for kind in kinds}))
    notes = [f"{lines:,} lines{part}, engine {engines}."]
    if len(penalties) == 1:
        notes.append(_penalty_text(*penalties.pop()))
    notes += [f"`{signature}`" for signature in signatures(group, split)]
    return Table(f"Translation quality on {split}", columns, rows, notes)


def decoding(group: Group, engine: Engine, shape: Shape) -> Table:
    """Time and cache at one shape, encoder and decoder apart."""
    beams = searches(group)
    columns = ["variant"]
    for label in map(search_label, beams):
        columns += [
            f"{label}: encoder µs/token",
            f"{label}: decoder µs/token (speed-up over MHA)",
            f"{label}: KV cache MiB",
        ]
    rows = []
    for row in group.rows:
        cells = [row.name]
        for beam in beams:
            encoder_us = timing_value(engine, beam, shape, "encoder_us_per_token")
            cache_bytes = timing_value(engine, beam, shape, "kv_cache_bytes")
            cells += [
                number(row.estimate(encoder_us), 1),
                _with_speed_up(group, row, engine, beam, shape),
                mebibytes(row.estimate(cache_bytes)),
            ]
        rows.append(cells)
    notes = timing_notes(group, engine, shape)
    return Table(f"Decoding: {_shape_text(shape)}, engine {engine}", columns, rows, notes)


def timing_notes(group: Group, engine: Engine, shape: Shape) -> list[str]:
    """How the timings of one shape were taken."""
    timings = [
        (record.benchmark, timing)
        for record in group.records
        for beam in searches(group)
        if record.benchmark and (timing := find_timing(record, engine, beam, shape))
    ]
    notes = ["Microseconds per output token: medians of the raw runs, which the records keep."]
    return notes + _distinct(
        f"{len(timing.decoder_s)} runs after {timing.warmup_runs} of warm-up; "
        f"{benchmark.device} {benchmark.precision}, {benchmark.threads} threads, "
        f"{benchmark.operators} operators, "
        f"{benchmark.weights} weights, {benchmark.max_positions} positions."
        for benchmark, timing in timings
    )


def training(group: Group) -> Table:
    """What training cost."""
    columns = [
        "variant",
        "updates",
        "target tokens/update",
        "training µs/target token (fixed shape)",
        "training µs/target token (real batches)",
        "peak memory of training MiB",
        "peak memory of decoding MiB",
    ]
    updates = stage_value("training", "updates")
    tokens = stage_value("training", "target_tokens_per_update")
    us = stage_value("training", "us_per_target_token")
    training_bytes = stage_value("training", "peak_memory_bytes")
    decoding_bytes = stage_value("benchmark", "peak_memory_bytes")
    rows = [
        [
            row.name,
            number(row.estimate(updates), 0),
            number(row.estimate(tokens), 0),
            number(row.estimate(fixed_shape_training_us), 1),
            number(row.estimate(us), 1),
            mebibytes(row.estimate(training_bytes)),
            mebibytes(row.estimate(decoding_bytes)),
        ]
        for row in group.rows
    ]
    stages = [stage for r in group.records for stage in (r.training, r.benchmark) if stage]
    notes = _distinct(
        f"Training on {r.training.processes} × {r.training.device} in {r.training.precision}."
        for r in group.records
        if r.training
    )
    notes += _distinct(
        f"The config asks for {r.training.target_tokens_per_update_wanted:,} target tokens an "
        "update."
        for r in group.records
        if r.training and r.training.target_tokens_per_update_wanted
    )
    notes += _distinct(f"Memory is {stage.peak_memory_kind.replace('_', ' ')}." for stage in stages)
    return Table("Training cost and memory", columns, rows, notes)


def group_tables(group: Group) -> list[Table]:
    """All tables of a group, the overview first, each with its provenance below."""
    tables = [
        overview(group),
        *(quality(group, split) for split in quality_splits(group)),
        *(
            decoding(group, engine, shape)
            for engine in timed_engines(group)
            for shape in timed_shapes(group)
        ),
        training(group),
    ]
    source = provenance(group)
    return [replace(table, notes=[*table.notes, source]) for table in tables]


def provenance(group: Group) -> str:
    """One line: hardware, commits, versions and seeds that a table's numbers come from."""
    hardware = group.first.hardware
    commits = _distinct(
        (r.code.commit[:12] + (" with local changes" if r.code.dirty else ""))
        if r.code.commit
        else "no commit"
        for r in group.records
    )
    seeds = _distinct(str(seed) for seed in sorted({r.seed for r in group.records}))
    versions = ", ".join(
        f"{name} {group.first.versions[name]}"
        for name in DECISIVE_VERSIONS
        if name in group.first.versions
    )
    return (
        f"{hardware_text(hardware)}; commit {', '.join(commits)}; code "
        f"{group.first.code.version[:12]}; {versions}; seed {', '.join(seeds)}."
    )


def hardware_text(hardware: Hardware) -> str:
    """Such as `Intel X (2 cores, 24 GiB), no GPU`."""
    gpus = ", ".join(f"{hardware.gpus.count(name)} × {name}" for name in _distinct(hardware.gpus))
    memory_gib = hardware.memory_bytes / 2**30
    cores = f"{hardware.cores_usable} cores, {memory_gib:.0f} GiB"
    return f"{hardware.cpu_model} ({cores}), {gpus or 'no GPU'}"


def _headline_split(group: Group) -> str | None:
    """The first of the test splits."""
    return next(iter(test_splits(group)), None)


def _headline_score(group: Group, row: Row, split: str | None, beam: int) -> str:
    kind = headline_kind(group, split, beam) if split else None
    return number(row.estimate(score_value(split, kind)), 1) if split and kind else NOT_RUN


def _with_speed_up(group: Group, row: Row, engine: Engine, beam: int, shape: Shape | None) -> str:
    value = decoder_us(engine, beam, shape) if shape else None
    own = row.estimate(value) if value else None
    mha = group.mha(row)
    base = mha.estimate(value) if mha and value else None
    text = number(own, 1)
    return f"{text} ({base.mean / own.mean:.2f}×)" if own and base else text


def _baseline_cells(group: Group, split: str, metric: str, tokenize: str | None) -> dict[str, str]:
    return {
        baseline: f"{score.value_0_100:.1f}"
        for baseline, scores in sorted(baseline_scores(group, split).items())
        for score in scores
        if (score.metric, score.tokenize) == (metric, tokenize)
    }


def signatures(group: Group, split: str) -> list[str]:
    """sacrebleu's signatures of the scores on `split`, each after its metric."""
    return _distinct(
        f"{score.metric}: {score.signature}"
        for record in group.records
        if record.evaluation
        for score in [*record.evaluation.scores, *record.evaluation.baselines]
        if score.split == split
    )


def _penalty_text(length_penalty: str, length_alpha: float) -> str:
    formula = "GNMT" if length_penalty == "gnmt" else length_penalty
    return f"Beam search with {formula}'s length penalty, alpha {length_alpha:g}."


def _shape_text(shape: Shape) -> str:
    batch, source, target = shape
    return f"batch {batch}, source {source}, target {target} tokens"


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
