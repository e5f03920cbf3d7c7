"""Finished stages of a job, written into their folders as the stages themselves would.

Nothing is trained: text is real, its data is as small as can be, and the numbers are made up.
"""

import hashlib
import math
from datetime import UTC, datetime
from typing import Any

import msgspec
import sentencepiece

from data_prep.corpora.registry import open_corpus, request
from data_prep.spec import HELD_OUT, Manifest, Overlap, SplitCounts
from data_prep.transform.clean import REASONS
from experiments.metrics import METRICS
from experiments.records import provenance
from experiments.records.hypotheses import Hypotheses, write_hypotheses
from experiments.records.parts import (
    Evaluation,
    ModelScore,
    Provenance,
    StageInfo,
    Training,
    TrainPoint,
)
from experiments.records.record import Diverged
from experiments.records.storage import write_json
from experiments.stages.folders import (
    RESULT_NAME,
    Converted,
    DataFolder,
    Done,
    ModelResult,
    Trained,
    TrainResult,
    Uptrained,
    UptrainedPoint,
)
from experiments.stages.graph import Job, Stage, StageName

LINES = {"train": 20, "dev": 3, "test": 4}
CHECKSUM = hashlib.sha256(b"the data").hexdigest()
NO_OVERLAP = Overlap(four_grams_seen_share=0.0, lines_covered_share=0.0, duplicate_lines=0)
HYPOTHESES = Hypotheses([f"Zeile {n}" for n in range(LINES["test"])], [])


def info(stage: Stage, wall_s: float = 7.0) -> StageInfo:
    """A stage that this code made on this machine."""
    made_by = Provenance(
        code=provenance.code_info(),
        versions=provenance.versions(),
        hardware=provenance.hardware(),
        threads=1,
    )
    return StageInfo(
        name=stage.name,
        key=stage.key,
        recipe=stage.recipe,
        provenance=made_by,
        started_utc=datetime(2026, 11, 1, tzinfo=UTC),
        wall_s=wall_s,
        tries=1,
    )


def finish_data(job: Job) -> DataFolder:
    """Prepared data that `python -m data_prep` takes for finished."""
    spec = job.config.data
    data = DataFolder(job.prepare.folder, spec.source_lang, spec.target_lang)
    (data.path / "text").mkdir(parents=True, exist_ok=True)
    data.binarized.mkdir(exist_ok=True)
    for split, count in LINES.items():
        for language in spec.languages:
            text = "".join(f"a b c {n}\n" for n in range(count))
            data.text(split, language).write_text(text, encoding="utf-8")
    for language in spec.languages:
        (data.binarized / f"dict.{language}.txt").write_text("a 1\n", encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(f"a b c {n}" for n in range(50)),
        model_prefix=str(data.pieces_model.with_suffix("")),
        vocab_size=20,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    manifest = Manifest(
        name=spec.name,
        source_lang=spec.source_lang,
        target_lang=spec.target_lang,
        licence="none",
        vocab_size=spec.vocab_size,
        max_pieces=spec.max_pieces,
        max_ratio=spec.max_ratio,
        request=request(spec),
        inputs=open_corpus(spec).inputs,
        splits={
            split: SplitCounts(
                read=n, kept=n, dropped=dict.fromkeys(REASONS, 0), source_pieces=9, target_pieces=9
            )
            for split, n in LINES.items()
        },
        overlap=dict.fromkeys(HELD_OUT, NO_OVERLAP),
        subsets={},
        files={},
        checksum=CHECKSUM,
        versions={},
    )
    (data.path / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    return data


def training(job: Job, updates: int = 12) -> Training:
    wanted = job.config.train.tokens_per_update
    point = TrainPoint(
        update=updates,
        train_nll_nats_per_token=5.0,
        dev_nll_nats_per_token=5.1,
        learning_rate=0.001,
        target_tokens=updates * wanted,
        wall_s=3.0,
    )
    return Training(
        device="cpu",
        precision="fp32",
        processes=1,
        curve=[point],
        updates=updates,
        target_tokens=updates * wanted,
        target_tokens_per_update=float(wanted),
        target_tokens_per_update_wanted=wanted,
        update_wall_s=updates * wanted * 1e-4,
        us_per_target_token=100.0,
        peak_memory_bytes=10**8,
        peak_memory_kind="process_rss",
    )


def finish_training(job: Job, **changes: Any) -> Trained:
    """A model that has no weights."""
    checkpoint = "checkpoints/checkpoint_last.pt"
    trained = Trained(
        **{"checkpoint": checkpoint, "data_checksum": CHECKSUM, "training": training(job)} | changes
    )
    (job.train.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (job.train.folder / checkpoint).write_bytes(b"no weights")
    _write(job.train, trained, Done[TrainResult])
    return trained


def finish_conversion(job: Job) -> Converted:
    """A model with other heads that has no weights."""
    stage = _stage(job, "convert")
    converted = Converted(
        checkpoint="checkpoints/converted.pt",
        data_checksum=CHECKSUM,
        parent_updates=job.parent_updates,
    )
    _write(stage, converted, Done[ModelResult])
    return converted


def finish_uptraining(job: Job, diverged: Diverged | None = None) -> Uptrained:
    """Models at all points that have no weights; with `diverged`, at all but the last."""
    config = job.config.uptrain
    updates = config.updates(job.parent_updates)
    points = [
        UptrainedPoint(
            alpha=alpha, checkpoint=f"checkpoints/uptrained_{n}.pt", training=training(job, n)
        )
        for alpha, n in zip(config.points, updates, strict=True)
    ]
    uptrained = Uptrained(
        data_checksum=CHECKSUM, points=points[:-1] if diverged else points, diverged=diverged
    )
    _write(_stage(job, "uptrain"), uptrained, Done[ModelResult])
    return uptrained


def _stage(job: Job, name: StageName) -> Stage:
    stage = job.stage(name)
    assert stage is not None
    return stage


def diverge(job: Job) -> Diverged:
    diverged = Diverged(after_update=0, reason="the loss at update 2 is nan", curve=[])
    _write(job.train, diverged, Done[TrainResult])
    return diverged


def finish_evaluation(job: Job, nll: float = 5.1) -> Evaluation:
    digest = write_hypotheses(job.evaluate.folder / "hypotheses", HYPOTHESES)
    evaluation = Evaluation(
        engine=job.config.decode.engine,
        parameters=job.architecture.parameters,
        dev_nll_nats_per_token=nll,
        dev_perplexity=math.exp(nll),
        dev_target_tokens=99,
        scores=[
            ModelScore(
                split=split,
                metric=metric,
                value=12.5,
                signature="made up",
                lines=LINES[split],
                hypotheses_sha256=digest,
                beam=beam,
                length_penalty="fairseq",
                length_alpha=0.6,
            )
            for split, beam in (("dev", 1), ("test", 1), ("test", job.config.decode.beam))
            for metric in METRICS
        ],
        model_free=[],
    )
    _write(job.evaluate, evaluation, Done[Evaluation])
    return evaluation


def _write(stage: Stage, result: Any, kind: Any) -> None:
    write_json(stage.folder / RESULT_NAME, Done(info(stage), result), kind)
