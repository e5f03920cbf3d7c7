"""Which stages a sweep has, and which key of the config changes which of them."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from data_prep_corpus import write_local_files
from suite_configs import ROOT, changed, compose_config

from experiments.config import SuiteConfig
from experiments.stages import graph
from experiments.stages.graph import (
    RECIPES,
    feeding_name,
    flat_config,
    identity_of,
    inputs_of,
    job_of,
    measurements_of,
    plan,
)
from gqa_fairseq.architecture import Architecture

SOURCES = ("conf", "data_prep", "experiments", "gqa_fairseq")

NOTHING: set[str] = set()
MEASURE = {"measure"}
EVALUATE = {"evaluate"}
EVALUATE_AND_MEASURE = {"evaluate", "measure"}
TRAIN = {"train", *EVALUATE_AND_MEASURE}  # and what follows
ALL = {"prepare", *TRAIN}
REVERSED = {"data.source_lang": "de", "data.target_lang": "en"}

# Another value for every key of the config, and the stages whose keys change with it.
CHANGES: dict[str, tuple[Any, set[str]]] = {
    "attention.num_kv_heads": (1, TRAIN),
    "attention.placement": ("decoder", TRAIN),
    "attention.d_ff": ("kept", TRAIN),
    "attention.num_heads": ({"attention.num_heads": 4, "attention.num_kv_heads": 4}, TRAIN),
    "attention.head_dim": (16, TRAIN),
    "attention.window": (32, TRAIN),
    "model.num_heads": (4, TRAIN),
    "model.d_model": (384, TRAIN),
    "model.encoder_layers": (3, TRAIN),
    "model.decoder_layers": (3, TRAIN),
    "model.mha_d_ff": (800, TRAIN),
    "model.bias": (True, TRAIN),
    "model.norm_before": (False, TRAIN),
    "model.max_positions": (600, TRAIN),
    "data.name": ("multi30k_en_de", ALL),
    "data.source_lang": (REVERSED, ALL),
    "data.target_lang": (REVERSED, ALL),
    "data.vocab_size": (4001, ALL),
    "data.max_pieces": (200, ALL),
    "data.max_ratio": (2.5, ALL),
    "data.mirror": ("/somewhere", NOTHING),
    "train.implementation": ("fairseq", TRAIN),
    "train.max_updates": (2000, TRAIN),
    "train.tokens_per_update": (900, TRAIN),
    "train.learning_rate": (0.001, TRAIN),
    "train.warmup_updates": (301, TRAIN),
    "train.adam_betas": ([0.9, 0.99], TRAIN),
    "train.weight_decay": (0.1, TRAIN),
    "train.clip_norm": (0.5, TRAIN),
    "train.label_smoothing": (0.1, TRAIN),
    "train.dropout": (0.1, TRAIN),
    "train.attention_dropout": (0.1, TRAIN),
    "train.activation_dropout": (0.1, TRAIN),
    "train.log_every_updates": (5, TRAIN),
    "train.validate_every_updates": (200, TRAIN),
    "train.average_checkpoints": (2, TRAIN),
    "uptrain.points": ([0.2], NOTHING),
    "decode.engine": ("stock", EVALUATE_AND_MEASURE),
    "decode.beam": (5, EVALUATE_AND_MEASURE),
    "decode.length_penalties": (["gnmt"], EVALUATE),
    "decode.length_alpha": (1.0, EVALUATE),
    "decode.max_len_a": (2.0, EVALUATE),
    "decode.max_len_b": (21, EVALUATE),
    "decode.batch_sentences": (32, EVALUATE),
    "measure.batch": (32, MEASURE),
    "measure.shapes": ([[64, 64]], MEASURE),
    "measure.warmup_runs": (2, MEASURE),
    "measure.repeats": (7, MEASURE),
    "measure.training_batch": (8, MEASURE),
    "measure.training_repeats": (7, MEASURE),
    "hardware.device": ("cuda", MEASURE),
    "hardware.devices": ({"hardware.device": "cuda", "hardware.devices": 2}, TRAIN),
    "hardware.precision": ({"hardware.device": "cuda", "hardware.precision": "fp16"}, TRAIN),
    "hardware.max_tokens_per_device": (4096, TRAIN),
    "hardware.nodes": ({"hardware.nodes": 2, "hardware.master": "first:29500"}, TRAIN),
    "hardware.node_rank": (
        {"hardware.nodes": 2, "hardware.master": "first:29500", "hardware.node_rank": 1},
        TRAIN,
    ),
    "hardware.master": ("first:29500", NOTHING),
    "hardware.threads": (1, NOTHING),
    "tracking.mode": ("offline", NOTHING),
    "experiment_name": ("other", NOTHING),
    "seed": (2, TRAIN),
    "rerun": ("train", NOTHING),
    "dry_run": (True, NOTHING),
    "paths.data": ("elsewhere", NOTHING),
    "paths.stages": ("elsewhere", NOTHING),
    "paths.runs": ("elsewhere", NOTHING),
    "paths.measurements": ("elsewhere", NOTHING),
    "paths.report": ("elsewhere", NOTHING),
}
# The same of a model that is converted and trained on. A key that trains another parent makes all
# that follows anew.
AFTER_CONVERSION = {"convert", "uptrain", *EVALUATE_AND_MEASURE}
PARENT = {"train", *AFTER_CONVERSION}
CHANGES_OF_UPTRAINING: dict[str, tuple[Any, set[str]]] = {
    "uptrain.method": ("mean", AFTER_CONVERSION),
    "uptrain.points": ([0.05, 0.1, 0.2], {"uptrain", *EVALUATE_AND_MEASURE}),
    "uptrain.alpha": (0.05, EVALUATE),  # of the same run
    "attention.num_kv_heads": (1, AFTER_CONVERSION),
    "attention.placement": ("decoder", AFTER_CONVERSION),
    "model.mha_d_ff": (800, PARENT),
    "data.max_pieces": (200, {"prepare", *PARENT}),
    "train.max_updates": (2000, PARENT),
    "train.dropout": (0.1, PARENT),
    "hardware.devices": ({"hardware.device": "cuda", "hardware.devices": 2}, PARENT),
    "seed": (2, PARENT),
    "decode.length_alpha": (1.0, EVALUATE),
    "measure.repeats": (7, MEASURE),
    "experiment_name": ("other", NOTHING),
}
OF_UPTRAINING = {"uptrain.method", "uptrain.alpha", "uptrain.parent"}
# Files of other corpora: the sample takes none (test_a_training_file_counts_by_its_content).
OF_OTHER_CORPORA = {"data.sources", "data.nearest"} | {
    f"data.{split}_{side}" for split in ("train", "dev", "test") for side in ("source", "target")
}


@pytest.fixture(scope="module")
def quickstart() -> SuiteConfig:
    return compose_config("experiment=quickstart")


@pytest.fixture(scope="module")
def grouped() -> SuiteConfig:
    """Every key of the attention makes a difference to it."""
    return compose_config("experiment=quickstart", "attention=gqa2")


@pytest.fixture(scope="module")
def uptrained() -> SuiteConfig:
    return compose_config("experiment=uptrain", "attention=gqa2")


def keys(config: SuiteConfig) -> dict[str, str]:
    """The key of each stage of one job and its measurement."""
    _, stages = plan([config])
    extra = ["convert", "uptrain"] if config.uptrain.method else []
    names = ["prepare", "train", *extra, "evaluate", "measure"]
    assert [stage.name for stage in stages] == names
    return {stage.name: stage.key for stage in stages}


def differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name for name in one if one[name] != other[name]}


def test_every_key_of_the_config_is_declared_and_changed_below(quickstart: SuiteConfig) -> None:
    found = set(flat_config(quickstart))
    for key in found:
        feeding_name(key)
    assert found == set(CHANGES) | OF_OTHER_CORPORA | OF_UPTRAINING
    assert set(CHANGES_OF_UPTRAINING) <= found


def test_a_key_that_no_one_declared_is_a_fault() -> None:
    with pytest.raises(AssertionError, match=r"does not say what train_later\.x feeds"):
        feeding_name("train_later.x")
    assert feeding_name("decode.beam") == "decode.beam"
    assert feeding_name("decode.beams") == "decode"


def test_trainings_from_before_the_implementation_had_a_name_are_kept(grouped: SuiteConfig) -> None:
    of_then = changed(grouped, {"train.implementation": "fairseq"})
    assert "train.implementation" not in inputs_of("train", of_then)
    assert "train.dropout" in inputs_of("train", of_then)


@pytest.mark.parametrize("key", CHANGES)
def test_a_key_changes_exactly_the_stages_that_depend_on_it(grouped: SuiteConfig, key: str) -> None:
    value, expected = CHANGES[key]
    other = changed(grouped, value if isinstance(value, dict) else {key: value})
    assert flat_config(other)[key] != flat_config(grouped)[key]
    assert differing(keys(grouped), keys(other)) == expected


@pytest.mark.parametrize("key", CHANGES_OF_UPTRAINING)
def test_a_key_changes_exactly_the_stages_of_an_uptraining(
    uptrained: SuiteConfig, key: str
) -> None:
    value, expected = CHANGES_OF_UPTRAINING[key]
    other = changed(uptrained, value if isinstance(value, dict) else {key: value})
    assert flat_config(other)[key] != flat_config(uptrained)[key]
    assert differing(keys(uptrained), keys(other)) == expected


def test_what_is_trained_on_is_the_multi_head_model_of_the_same_config(
    quickstart: SuiteConfig, uptrained: SuiteConfig
) -> None:
    """Whoever has run the quickstart has it."""
    job, multi_head = job_of(uptrained), job_of(quickstart)
    assert (job.train.key, job.train.folder) == (multi_head.train.key, multi_head.train.folder)
    assert job.train.folder.name.startswith("mha-seed1-")
    assert job.name == f"gqa2-ff768-svd-product-0.1-seed1-{job.id[:12]}"
    assert [stage.name for stage in job.stages] == [
        "prepare", "train", "convert", "uptrain", "evaluate",
    ]  # fmt: skip
    converted = job_of(changed(uptrained, {"uptrain.alpha": 0}))
    assert [stage.name for stage in converted.stages] == ["prepare", "train", "convert", "evaluate"]
    assert converted.model.key == job.model.parents[0].key


def test_a_sweep_of_uptrainings_trains_their_parent_once_and_each_run_once(
    uptrained: SuiteConfig,
) -> None:
    configs = [
        changed(uptrained, {
            "attention.num_kv_heads": heads, "uptrain.method": method, "uptrain.alpha": alpha,
        })
        for alpha in (0, 0.05, 0.1)
        for heads in (8, 2, 1)
        for method in ("mean", "svd-product")
    ]  # fmt: skip
    jobs, stages = plan(configs)
    counts = Counter(stage.name for stage in stages)
    # Where there are as many heads as before, all methods are the same, which is the control.
    assert len(jobs) == 3 * (2 * 2 + 1)
    assert counts == {
        "prepare": 1, "train": 1, "convert": 5, "uptrain": 5, "evaluate": 15, "measure": 1,
    }  # fmt: skip
    control = [job for job in jobs if job.architecture.is_multi_head]
    assert {job.method for job in control} == {"identity"}
    assert {job.name.split("-seed")[0] for job in control} == {
        "mha-identity-0", "mha-identity-0.05", "mha-identity-0.1",
    }  # fmt: skip


def test_a_seed_feeds_a_conversion_that_draws(uptrained: SuiteConfig) -> None:
    drawn = inputs_of("convert", changed(uptrained, {"uptrain.method": "random"}))
    assert drawn["seed"] == 1
    assert "seed" not in inputs_of("convert", uptrained)


def test_which_machine_this_is_changes_nothing(quickstart: SuiteConfig) -> None:
    both = {"hardware.nodes": 2, "hardware.master": "first:29500"}
    second = changed(quickstart, {**both, "hardware.node_rank": 1})
    assert keys(changed(quickstart, both)) == keys(second)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("prepare", ALL), ("train", TRAIN), ("evaluate", EVALUATE), ("measure", MEASURE)],
)
def test_a_raised_recipe_changes_its_stage_and_what_depends_on_it(
    quickstart: SuiteConfig, monkeypatch: pytest.MonkeyPatch, name: Any, expected: set[str]
) -> None:
    before = keys(quickstart)
    monkeypatch.setitem(RECIPES, name, RECIPES[name] + 1)
    assert differing(before, keys(quickstart)) == expected


def test_the_numbers_of_an_architecture_are_its_identity(quickstart: SuiteConfig) -> None:
    architecture = inputs_of("train", quickstart)["architecture"]
    derived = {"name", "residual"}
    unusual = {"embeddings"}  # other than one matrix
    assert set(architecture) == set(Architecture.__dataclass_fields__) - derived - unusual
    separate = dataclasses.replace(quickstart.architecture, embeddings=3)
    assert identity_of(separate) == architecture | {"embeddings": 3}


def test_mha_is_mha_whatever_the_placement(quickstart: SuiteConfig) -> None:
    decoder = changed(quickstart, {"attention.placement": "decoder"})
    jobs, stages = plan([quickstart, changed(decoder, {"attention.num_kv_heads": 8})])
    assert len(jobs) == 1
    assert len(stages) == 4
    mqa = changed(quickstart, {"attention.num_kv_heads": 1})
    mqa_decoder = changed(mqa, {"attention.placement": "decoder"})
    assert job_of(mqa).train.key != job_of(mqa_decoder).train.key


def test_a_sweep_has_each_stage_once_and_after_its_parents(quickstart: SuiteConfig) -> None:
    configs = [
        changed(quickstart, {"attention.num_kv_heads": heads, "seed": seed, "decode.beam": beam})
        for heads in (8, 2, 1)
        for seed in (1, 2)
        for beam in (4, 5)
    ]
    jobs, stages = plan([*configs, *configs])
    assert len(jobs) == 12
    counts = {
        name: sum(stage.name == name for stage in stages)
        for name in ("prepare", "train", "evaluate", "measure")
    }
    # Six models; each is translated with two beams, and measured with two beams.
    assert counts == {"prepare": 1, "train": 6, "evaluate": 12, "measure": 2}
    assert len({stage.key for stage in stages}) == len(stages)
    place = {stage.key: number for number, stage in enumerate(stages)}
    for stage in stages:
        assert all(place[parent.key] < place[stage.key] for parent in stage.parents)


def test_a_job_of_two_experiments_is_a_job_of_each_and_is_trained_once(
    quickstart: SuiteConfig,
) -> None:
    jobs, stages = plan([changed(quickstart, {"experiment_name": name}) for name in ("a", "b")])
    assert [job.folder.parent.name for job in jobs] == ["a", "b"]
    assert jobs[0].id == jobs[1].id
    names = [stage.name for stage in stages]
    assert names == ["prepare", "train", "evaluate", "measure", "measure"]
    assert [stage.folder.parent.name for stage in stages[3:]] == ["a", "b"]


def test_the_measurement_of_a_sweep_has_all_its_trainings_as_parents(
    quickstart: SuiteConfig,
) -> None:
    configs = [changed(quickstart, {"attention.num_kv_heads": heads}) for heads in (8, 2, 1)]
    jobs, _ = plan(configs)
    [(stage, group)] = measurements_of(jobs)
    assert group == jobs
    assert {parent.key for parent in stage.parents} == {job.train.key for job in jobs}
    assert stage.folder.name == f"mha-gqa2-mqa-{stage.key[:12]}"
    [(of_two, _)] = measurements_of(jobs[:2])
    assert of_two.key != stage.key
    [(reordered, _)] = measurements_of(jobs[::-1])
    assert reordered.key == stage.key  # the variants take turns: their order means nothing


def test_what_is_measured_otherwise_or_elsewhere_is_another_measurement(
    quickstart: SuiteConfig,
) -> None:
    others = [
        {"measure.repeats": 7},
        {"experiment_name": "x"},
        {"paths.measurements": "x"},
        {"data.vocab_size": 4001},
    ]
    jobs, _ = plan([quickstart, *(changed(quickstart, {"seed": 2, **one}) for one in others)])
    assert [group for _, group in measurements_of(jobs)] == [[job] for job in jobs]


def test_several_baselines_are_measured_side_by_side_under_names_of_their_own(
    quickstart: SuiteConfig,
) -> None:
    """Their variants have the same names by themselves."""
    narrow = {"model.d_model": 96}
    values = [{}, {"attention.num_kv_heads": 1}, narrow, {**narrow, "seed": 2}]
    jobs, stages = plan(changed(quickstart, one) for one in values)
    assert len({job.config.architecture.name for job in jobs}) == 2
    [(stage, group)] = measurements_of(jobs)
    assert group == jobs
    assert stage.folder.name == f"mha-d192-mqa-d192-mha-d96-{stage.key[:12]}"
    assert [s.key for s in stages if s.name == "measure"] == [stage.key]


def test_a_training_file_counts_by_its_content(quickstart: SuiteConfig, tmp_path: Path) -> None:
    def config_of(folder: Path) -> SuiteConfig:
        spec = write_local_files(folder)
        files = {key: getattr(spec, key.split(".")[1]) for key in OF_OTHER_CORPORA}
        return changed(quickstart, {"data.name": "local", **files})

    here, there = config_of(tmp_path / "here"), config_of(tmp_path / "there")
    before = keys(here)
    assert keys(there) == before
    text = Path(here.data.train_source or "")
    text.write_text(text.read_text(encoding="utf-8").replace("e", "a", 1), encoding="utf-8")
    graph._request.cache_clear()  # another process: in one, a file is read once
    assert differing(before, keys(here)) == ALL
    assert job_of(here).prepare.folder != job_of(there).prepare.folder


KEYS = """
import json
from hydra import compose, initialize_config_dir
from experiments.records.provenance import ROOT, code_info
from experiments.stages.graph import plan
from experiments.stages.sweep import resolve

with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
    config = resolve(compose("suite", overrides=["experiment=quickstart"]))
stages = {stage.name: stage.key for stage in plan([config])[1]}
print(json.dumps({"root": str(ROOT), "stages": stages, "digest": code_info().digest}))
"""


def copied_keys(root: Path) -> dict[str, Any]:
    """Stage keys and digest of the code at `root`, from a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", KEYS],
        cwd=root, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["root"] == str(root.resolve())
    return found


def test_a_comment_in_any_source_file_runs_no_stage_again(
    quickstart: SuiteConfig, tmp_path: Path
) -> None:
    for name in SOURCES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    before = copied_keys(tmp_path)
    assert before["stages"] == keys(quickstart)
    edited = [*tmp_path.rglob("*.py"), *tmp_path.rglob("*.yaml")]
    assert len(edited) > 100
    for path in edited:
        with path.open("a", encoding="utf-8") as stream:
            stream.write("\n# a comment\n")
    (tmp_path / "data_prep/README.md").write_text("A typo was mended.\n", encoding="utf-8")
    after = copied_keys(tmp_path)
    assert after["stages"] == before["stages"]
    assert after["digest"] != before["digest"]
