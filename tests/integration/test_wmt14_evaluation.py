"""A model is evaluated on WMT14's test set and its filtered part, from archives to a record."""

from pathlib import Path

import pytest
from sacrebleu.metrics import BLEU, CHRF
from suite_configs import compose_config
from wmt14_mirror import small_mirror

from data_prep.corpora.wmt14_en_de import Wmt14
from data_prep.spec import DataSpec
from experiments.config import SuiteConfig
from experiments.metrics import METRICS, score_of
from experiments.records.hypotheses import Hypotheses, read_hypotheses
from experiments.records.parts import Evaluation
from experiments.records.record import Record
from experiments.records.storage import read_lines
from experiments.stages.folders import JobFolder
from experiments.stages.graph import job_of
from experiments.stages.job import run_job

pytestmark = pytest.mark.slow

SCORERS = {"bleu": BLEU(tokenize="13a"), "bleu_intl": BLEU(tokenize="intl"), "chrf": CHRF()}
SEARCHES = ("greedy", "beam4", "beam4_gnmt")


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    """Archives of the real layout, small."""
    return small_mirror(tmp_path_factory.mktemp("wmt14"))


@pytest.fixture(scope="module")
def config(mirror: DataSpec, tmp_path_factory: pytest.TempPathFactory) -> SuiteConfig:
    """A job of a few updates on them."""
    folder = tmp_path_factory.mktemp("outputs")
    return compose_config(
        "experiment=smoke", "data=wmt14_en_de", "decode=wmt14",
        f"data.vocab_size={mirror.vocab_size}", f"data.sources={mirror.sources}",
        f"data.mirror={mirror.mirror}", "train.max_updates=4", "train.validate_every_updates=4",
        "train.warmup_updates=2", "hardware.threads=1",
        *(f"paths.{name}={folder}/{name}" for name in ("data", "stages", "runs")),
    )  # fmt: skip


@pytest.fixture(scope="module")
def job(config: SuiteConfig) -> JobFolder:
    """The job, trained and evaluated."""
    job = job_of(config)
    assert run_job(job).status == "done"
    return JobFolder(job.folder)


@pytest.fixture(scope="module")
def record(job: JobFolder) -> Record:
    return job.record()


@pytest.fixture(scope="module")
def evaluation(record: Record) -> Evaluation:
    assert record.evaluation is not None
    return record.evaluation


def translations(job: JobFolder, evaluation: Evaluation, split: str, search: str) -> Hypotheses:
    """What is kept with the record."""
    [digest] = {
        score.hypotheses_sha256
        for score in evaluation.scores
        if (score.split, score.search) == (split, search)
    }
    return read_hypotheses(job.hypotheses, digest)


def test_scores_on_the_filtered_lines_are_sacrebleus_on_the_filtered_file(
    mirror: DataSpec, job: JobFolder, evaluation: Evaluation, tmp_path: Path
) -> None:
    """The oracle never sees line numbers: it looks up the filtered archive's own segments."""
    assert mirror.mirror is not None
    corpus = Wmt14(mirror)
    corpus.extract(Path(mirror.mirror), tmp_path)
    filtered = list(corpus.pairs("test_filtered", tmp_path))
    sources = read_lines(job.data().text("test", "en"))
    assert len(filtered) < len(sources) == len(set(sources))
    assert SCORERS.keys() == METRICS.keys()
    for search in SEARCHES:
        translated = translations(job, evaluation, "test_filtered", search)
        translation = dict(zip(sources, translated.lines, strict=True))
        hypotheses = [translation[source] for source, _ in filtered]
        references = [target for _, target in filtered]
        for metric, scorer in SCORERS.items():
            [score] = (
                s
                for s in evaluation.scores
                if (s.split, s.search, s.metric) == ("test_filtered", search, metric)
            )
            expected = scorer.corpus_score(hypotheses, [references])
            assert score.value == expected.score
            assert score.signature == str(scorer.get_signature())
            assert score.lines == len(filtered)


def test_every_search_split_and_model_free_translation_is_scored_once(
    record: Record, evaluation: Evaluation
) -> None:
    found = [(s.split, s.search) for s in evaluation.scores if s.metric == "bleu_intl"]
    expected = [(split, s) for split in ("test", "test_filtered") for s in SEARCHES]
    assert sorted(found) == sorted([("dev", "greedy"), *expected])
    copied = [s.split for s in evaluation.model_free if (s.name, s.metric) == ("copy", "chrf")]
    assert sorted(copied) == ["test", "test_filtered"]
    for score in [*evaluation.scores, *evaluation.model_free]:
        assert score.lines == record.lines(score.split)


def test_translations_are_kept_and_give_every_score_without_references(
    job: JobFolder, evaluation: Evaluation
) -> None:
    """A subset needs no translation of its own; the source's own text is not kept."""
    kept = {score.hypotheses_sha256 for score in evaluation.scores}
    counted = kept | {score.hypotheses_sha256 for score in evaluation.model_free}
    assert {path.name for path in job.hypotheses.iterdir()} == {
        *(f"{digest}.txt.xz" for digest in kept),
        *(f"{digest}.counts.json.xz" for digest in counted),
    }
    for score in [*evaluation.scores, *evaluation.model_free]:
        if score.split in ("dev", "test"):
            counts = read_hypotheses(job.hypotheses, score.hypotheses_sha256).of(score.metric)
            assert counts.signature == score.signature
            assert len(counts.lines) == score.lines
            assert score_of(SCORERS[score.metric], counts.lines) == score.value


def test_the_data_says_that_it_is_not_wmt14(record: Record) -> None:
    """So that no report sets its scores beside the papers' rows."""
    assert record.data.name == "wmt14_en_de"
    assert "not checked to be WMT14" in record.data.note
    assert list(record.data.subsets) == ["filtered"]
