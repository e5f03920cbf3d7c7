"""A parent that no job trained: what must fit the config, and the command that goes on with it."""

import dataclasses
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from suite_configs import changed, compose_config

from experiments.config import SuiteConfig
from experiments.errors import ExperimentError
from experiments.stages import graph
from experiments.stages.folders import DataFolder
from experiments.stages.graph import job_of
from experiments.stages.uptraining.parent import ParentFile, Recipe, converted
from experiments.stages.uptraining.uptrain import uptrain_command
from gqa_fairseq.architecture import Architecture, Heads
from gqa_fairseq.parity import Baseline

replace = msgspec.structs.replace
WORDS = 4001
# Of fairseq's transformer: 16 heads of 64, sinusoidal positions, embeddings that are not shared.
STOCK = dataclasses.replace(
    Baseline(num_heads=16, bias=True, pre_norm=False, vocab_size=WORDS).multi_head, embeddings=3
)
RECIPE = Recipe(
    updates=1000,
    source_lang="en",
    target_lang="de",
    data="data-bin",
    seed=1,
    batches_per_update=4,
    options=["--max-tokens", "512", "--lr", "[0.002]", "--task", "gqa_translation"],
    model={"num_kv_heads": None, "use_bias": True, "dropout": 0.1, "share_all_embeddings": False,
           "max_source_positions": 1024, "max_target_positions": 900},
    architecture=STOCK,
    source_words=WORDS,
    target_words=WORDS,
)  # fmt: skip


def parent(path: Path = Path("parent.pt"), **values: Any) -> ParentFile:
    return ParentFile(path=path, sha256="0" * 64, recipe=replace(RECIPE, **values))


@pytest.fixture(scope="module")
def config() -> SuiteConfig:
    """MQA out of a file, whatever shape the config's own model has."""
    return compose_config("experiment=uptrain", "attention=mqa", "uptrain.parent=parent.pt")


@pytest.mark.parametrize(
    ("values", "recipe", "words"),
    [
        ({}, {"source_lang": "fr"}, "translates fr to de, not data.source_lang=en"),
        ({}, {"target_words": 99}, "has dictionaries of 4,001 and 99 words, not the 4,001 of data"),
        ({"seed": 2}, {}, r"was trained with seed 1, .* \(set seed=1\)"),
        ({"data.max_pieces": 900}, {}, "has 900 positions, too few for data.max_pieces=900"),
        ({}, {"updates": 9}, r"of 9 updates are \[1, 1\]: an update by itself"),
        (
            {"hardware.device": "cuda", "hardware.devices": 3},
            {},
            "an update of 4 batches, which hardware.devices=3 does not divide",
        ),
    ],
)
def test_what_the_recipe_is_not_is_refused_in_one_line(
    config: SuiteConfig, values: dict[str, Any], recipe: dict[str, Any], words: str
) -> None:
    with pytest.raises(ExperimentError, match=words) as caught:
        parent(**recipe).check(changed(config, values))
    assert str(caught.value).startswith("uptrain.parent=parent.pt")
    assert "\n" not in str(caught.value)
    parent(source_lang=None, target_lang=None).check(config)  # they were never said


def test_a_parents_shape_is_its_own(config: SuiteConfig) -> None:
    """Heads, widths and embeddings stay, but for the key/value heads."""
    found = parent().converted(config)
    assert found.name == "mqa-ff4096"
    assert found.encoder_heads == found.decoder_heads == Heads(16, 64, 1)
    expected = dataclasses.replace(
        STOCK, name=found.name, residual=found.residual,
        encoder_heads=found.encoder_heads, decoder_heads=found.decoder_heads,
    )  # fmt: skip
    assert found == expected
    assert found.parameters - STOCK.parameters == found.residual < 0


def grouped(**heads: int) -> Architecture:
    return dataclasses.replace(
        STOCK, **{f"{side}_heads": Heads(16, 64, number) for side, number in heads.items()}
    )


@pytest.mark.parametrize(
    ("before", "num_kv_heads", "placement", "words"),
    [
        (STOCK, 3, "all", "num_kv_heads 3 does not divide 16 attention heads"),
        (grouped(encoder=4, decoder=4), 8, "all", "does not divide the 4 key/value heads that"),
        # Under this placement the encoder would have all heads again.
        (grouped(encoder=4, decoder=4), 2, "decoder", "16 does not divide the 4 key/value heads"),
    ],
)
def test_heads_that_cannot_become_so_few_are_refused(
    before: Architecture, num_kv_heads: int, placement: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        converted(before, num_kv_heads, placement)
    assert converted(grouped(encoder=4, decoder=4), 2, "all").decoder_heads == Heads(16, 64, 2)


@pytest.mark.parametrize("encoder", [Heads(4, 256, 4), Heads(32, 32, 32), Heads(6, 64, 6)])
def test_an_encoder_with_other_heads_keeps_them_where_the_decoder_alone_is_converted(
    encoder: Heads,
) -> None:
    """Heads of fairseq's own models: each side has its number, and d_model need not be divided."""
    before = dataclasses.replace(STOCK, encoder_heads=encoder)
    found = converted(before, 1, "decoder")
    assert (found.encoder_heads, found.decoder_heads) == (encoder, Heads(16, 64, 1))
    assert found.placement == "decoder"
    assert found.name == "mqa-dec-ff4096"
    assert found.residual == found.parameters - before.parameters < 0
    assert converted(before, 16, "decoder") == dataclasses.replace(before, name="mha")


def test_a_file_is_a_parent_by_its_content(
    config: SuiteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [parent()]
    monkeypatch.setattr(graph, "read_parent", lambda config: found[0])
    job = job_of(config)
    assert [stage.name for stage in job.stages] == ["prepare", "convert", "uptrain", "evaluate"]
    assert (job.method, job.parent_updates) == ("svd-product", 1000)
    assert job.architecture.name == "mqa-ff4096"
    assert job_of(changed(config, {"uptrain.parent": "elsewhere.pt"})).id == job.id
    found[0] = replace(found[0], sha256="1" * 64)
    assert job_of(config).id != job.id
    control = job_of(changed(config, {"attention.num_kv_heads": 16}))
    assert control.method == "identity"


def test_the_command_is_the_recipe_with_our_files_and_devices(
    config: SuiteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "read_parent", lambda config: parent())
    job = job_of(config)
    command = uptrain_command(job, Path("bin"), Path("c"), Path("converted.pt"), 50)
    assert command[:2] == ["fairseq-train", "bin"]
    options = dict(pairwise(command))
    assert {name: options[name] for name in ("--max-tokens", "--lr", "--task")} == {
        "--max-tokens": "512", "--lr": "[0.002]", "--task": "gqa_translation",
    }  # fmt: skip
    ours = {
        "--arch": "gqa_transformer", "--num-kv-heads": "1", "--attention-placement": "all",
        "--update-freq": "4", "--save-dir": "c", "--max-update": "1050", "--dropout": "0.1",
        "--continue-once": "converted.pt",
    }  # fmt: skip
    assert {name: options[name] for name in ours} == ours
    assert "--use-bias" in command
    assert "--share-all-embeddings" not in command
    assert "--cpu" in command


@pytest.mark.parametrize("place", ["beside", "above", "corpus"])
def test_the_words_of_the_data_must_be_those_of_the_model(tmp_path: Path, place: str) -> None:
    """The dictionary lies beside the checkpoint, above it, as in a stage, or with its corpus."""
    checkpoints = tmp_path / "model/checkpoints"
    where = {"beside": checkpoints, "above": tmp_path / "model", "corpus": tmp_path / "then"}[place]
    data = DataFolder(tmp_path / "data", "en", "de")
    for folder in (checkpoints, where, data.binarized):
        folder.mkdir(parents=True, exist_ok=True)
    found = parent(checkpoints / "last.pt", data=str(tmp_path / "then"))

    def write(folder: Path, text: str) -> None:
        for language in ("en", "de"):
            (folder / f"dict.{language}.txt").write_text(text, encoding="utf-8")

    write(data.binarized, "a 3\nb 2\n")
    assert "cannot be checked" in (found.check_dictionaries(data) or "")
    write(where, "a 9\nb 1\n")  # counts are of another text
    assert found.check_dictionaries(data) is None
    write(where, "b 9\na 1\n")
    with pytest.raises(ExperimentError, match=r"these are not the words of uptrain\.parent"):
        found.check_dictionaries(data)


def test_the_process_that_reads_a_checkpoint_knows_the_tasks_it_may_name() -> None:
    script = (
        "from gqa_fairseq.checkpoints.recipe import TASKS\n"
        "from fairseq.tasks import TASK_DATACLASS_REGISTRY as known\n"
        "print('unknown', [name for name in TASKS if name not in known])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.endswith("unknown []\n"), done.stderr
