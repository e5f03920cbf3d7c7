"""A model is evaluated on WMT14's test set and its filtered part, from archives to scores."""

from pathlib import Path

import pytest
from experiments.corpus import read_data_info, read_lines
from experiments.layout import JobFolder, data_folder
from experiments.record_parts import Evaluation
from experiments.storage import read_json, write_json
from experiments.train import train
from hydra import compose, initialize_config_dir
from rich.console import Console
from sacrebleu.metrics import BLEU, CHRF
from wmt14_mirror import small_mirror

from data_prep.corpora.wmt14_en_de import Wmt14
from data_prep.pipeline import prepare
from experiments.config import SuiteConfig
from experiments.evaluate import evaluate
from experiments.run import resolve

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
METRICS = {
    ("bleu", "13a"): BLEU(tokenize="13a"),
    ("bleu", "intl"): BLEU(tokenize="intl"),
    ("chrf", None): CHRF(),
}
SEARCHES = ("greedy", "beam4", "beam4_gnmt")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SuiteConfig:
    """A job of a few updates; its data is prepared from archives of the real layout."""
    folder = tmp_path_factory.mktemp("wmt14")
    overrides = [
        "experiment=smoke", "data=wmt14_en_de", "decode=wmt14", "data.vocab_size=500",
        "train.max_updates=4", "train.validate_every_updates=4", "train.warmup_updates=2",
        f"paths.data={folder}/data",
    ]  # fmt: skip
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(compose("suite", overrides=overrides))
    spec = small_mirror(folder / "mirror", config.data.vocab_size)
    quiet = Console(quiet=True)
    prepare(spec, data_folder(config).path, console=quiet)
    return config


@pytest.fixture(scope="module")
def job(config: SuiteConfig, tmp_path_factory: pytest.TempPathFactory) -> JobFolder:
    """The job, trained and evaluated."""
    job = JobFolder(tmp_path_factory.mktemp("job"))
    write_json(job.config, config)
    train(config, job, data_folder(config), threads=1)
    evaluate(job)
    return job


def test_scores_on_the_filtered_lines_are_sacrebleus_on_the_filtered_file(
    config: SuiteConfig, job: JobFolder, tmp_path: Path
) -> None:
    """The oracle never sees line numbers: it looks up the filtered archive's own segments."""
    data = data_folder(config)
    spec = small_mirror(tmp_path / "mirror")
    corpus = Wmt14(spec)
    corpus.extract(tmp_path / "mirror", tmp_path)
    filtered = list(corpus.pairs("test_filtered", tmp_path))
    sources = read_lines(data.text("test", "en"))
    assert len(filtered) < len(sources) == len(set(sources))
    evaluation = read_json(job.evaluation, Evaluation)
    for search in SEARCHES:
        translated = read_lines(job.hypotheses / f"test.{search}.de")
        translation = dict(zip(sources, translated, strict=True))
        hypotheses = [translation[source] for source, _ in filtered]
        references = [target for _, target in filtered]
        for (metric, tokenize), scorer in METRICS.items():
            (score,) = (
                s
                for s in evaluation.scores
                if (s.split, s.search, s.metric, s.tokenize)
                == ("test_filtered", search, metric, tokenize)
            )
            expected = scorer.corpus_score(hypotheses, [references])
            assert score.value_0_100 == expected.score
            assert score.signature == str(scorer.get_signature())
            assert score.lines == len(filtered)


def test_every_search_split_and_baseline_is_scored_once(
    config: SuiteConfig, job: JobFolder
) -> None:
    evaluation = read_json(job.evaluation, Evaluation)
    found = [(s.split, s.search) for s in evaluation.scores if s.tokenize == "intl"]
    expected = [(split, s) for split in ("test", "test_filtered") for s in SEARCHES]
    assert sorted(found) == sorted([("dev", "greedy"), *expected])
    files = {path.name for path in job.hypotheses.iterdir()}
    # A subset needs no translation of its own.
    assert files == {"dev.greedy.de", *(f"test.{search}.de" for search in SEARCHES)}
    copied = {s.split for s in evaluation.baselines if s.baseline == "copy"}
    assert copied == {"test", "test_filtered"}
    info = read_data_info(data_folder(config).manifest)
    for score in [*evaluation.scores, *evaluation.baselines]:
        assert score.lines == info.lines(score.split)


def test_the_data_says_that_it_is_not_wmt14(config: SuiteConfig) -> None:
    """So that no report sets its scores beside the papers' rows."""
    info = read_data_info(data_folder(config).manifest)
    assert info.name == "wmt14_en_de"
    assert "not checked to be WMT14" in info.note
    assert list(info.subsets) == ["test_filtered"]
