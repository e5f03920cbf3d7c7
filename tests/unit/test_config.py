"""What is composed and refused, what two variants share, and fairseq's command.

Composition runs in a process of its own, as for a user: fairseq, which other tests import, adds
to Hydra's store.
"""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from suite_configs import ROOT, changed

from experiments.config import FROM_SCRATCH, SuiteConfig, parse_config
from experiments.errors import ExperimentError
from experiments.stages.graph import job_of
from experiments.stages.training.command import train_command

EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf/experiment").glob("*.yaml"))
FILES = [
    f"data.{split}_{side}=x" for split in ("train", "dev", "test") for side in ("source", "target")
]

# One process composes every case: starting Hydra takes longer than composing.
COMPOSE = """
import json, sys
import msgspec
import experiments.run
from hydra import compose, initialize_config_dir
from experiments.stages.graph import plan
from experiments.stages.sweep import resolve

with initialize_config_dir(sys.argv[1], version_base="1.3"):
    configs = [resolve(compose("suite", overrides=case)) for case in json.loads(sys.argv[2])]
plan([config for config in configs if config.data.name != "local"])
print(json.dumps({"configs": msgspec.to_builtins(configs), "modules": sorted(sys.modules)}))
"""


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in `folder`, with this suite on its path."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, cwd=folder, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def compose_all(cases: list[list[str]]) -> dict[str, Any]:
    done = run_python(ROOT, "-c", COMPOSE, str(ROOT / "conf"), json.dumps(cases))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    cases = {
        "default": [],
        "mha": ["experiment=quickstart"],
        "mqa": ["experiment=quickstart", "attention=mqa"],
        "gpu": ["experiment=quickstart", "hardware=gpu1"],
        "decode": ["experiment=quickstart", "decode=wmt14"],
        "converted": ["experiment=quickstart", "attention=gqa2", "uptrain=converted"],
        **{name: [f"experiment={name}", *FILES * (name == "smoke")] for name in EXPERIMENTS},
    }
    result = compose_all(list(cases.values()))
    return {"modules": result["modules"], **dict(zip(cases, result["configs"], strict=True))}


@pytest.fixture(scope="module")
def quickstart(composed: dict[str, Any]) -> SuiteConfig:
    return parse_config(composed["mha"])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_under_its_own_name(composed: dict[str, Any], name: str) -> None:
    assert parse_config(composed[name]).experiment_name == name


def test_composing_and_planning_import_no_torch_no_fairseq_and_nothing_that_works(
    composed: dict[str, Any],
) -> None:
    modules = composed["modules"]
    assert "experiments.run" in modules
    assert not {"torch", "fairseq", "wandb"} & {name.split(".")[0] for name in modules}
    plugin = {name for name in modules if name.split(".")[0] == "gqa_fairseq"}
    assert plugin <= {
        "gqa_fairseq",
        *(f"gqa_fairseq.{n}" for n in ("architecture", "parity", "host_memory")),
    } | {
        "gqa_fairseq.costs",
        *(f"gqa_fairseq.{n}" for n in ("decoding", "decoding.options", "decoding.rules")),
    }
    assert "data_prep.spec" in modules
    assert not {"data_prep.pipeline", "data_prep.steps", "data_prep.transform"} & set(modules)


def test_variants_differ_in_attention_only(composed: dict[str, Any]) -> None:
    mha, mqa = composed["mha"], composed["mqa"]
    unset = {"num_heads": None, "head_dim": None, "window": None, "d_ff": "matched"}
    assert mha["attention"] == {"num_kv_heads": 8, "placement": "all", **unset}
    assert mqa["attention"] == {"num_kv_heads": 1, "placement": "all", **unset}
    assert mha | {"attention": None} == mqa | {"attention": None}


def test_wmt14_is_decoded_with_both_penalties(composed: dict[str, Any]) -> None:
    plain, wmt14 = composed["mha"]["decode"], composed["decode"]["decode"]
    assert plain["length_penalties"] == ["fairseq"]
    assert wmt14 == plain | {"length_penalties": ["fairseq", "gnmt"]}
    assert (wmt14["beam"], wmt14["length_alpha"]) == (4, 0.6)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("nonsense=1", "nonsense"),
        ("model.nonsense=1", "nonsense"),
        ("attention=gqa3", "gqa3"),
    ],
)
def test_hydra_refuses_what_is_unknown(tmp_path: Path, override: str, words: str) -> None:
    done = run_python(tmp_path, "-m", "experiments.run", "experiment=quickstart", override)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ("+model.nonsense=1", "config: model: Object contains unknown field `nonsense`"),
        ("attention.placement=encoder", "config: attention.placement: Invalid enum value"),
        ("data=local", "config: Missing mandatory value: train_source (set data.train_source=...)"),
        ("data.name=nonsense", "data: no corpus is called 'nonsense': choose one of sample_en_de"),
        ("hardware=gpu1 hardware.devices=4", "hardware.devices=4 GPUs are wanted"),
        ("-m attention.num_kv_heads=1,2,3", "config: attention.num_kv_heads 3 does not divide"),
        ("-m seed=1,4294967296", "config: seed: Expected `int` <= 4294967295"),
        ("-m uptrain=converted uptrain.alpha=0.1,0.2", "config: uptrain: uptrain.alpha=0.2 is"),
        ("uptrain=converted uptrain.parent=no/such.pt", "uptrain.parent=no/such.pt: no such check"),
        ("uptrain=converted uptrain.parent=.", "uptrain.parent: .: no links.json in it"),
    ],
)
def test_the_command_refuses_in_one_line_before_any_work(
    tmp_path: Path, overrides: str, line: str
) -> None:
    """In a sweep for its last job as well."""
    command = ["-m", "experiments.run", *overrides.split(), "experiment=quickstart"]
    done = run_python(tmp_path, *command)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {line}")
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


INFINITE = float("inf")
NO_NUMBER = float("nan")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model.d_model": 100}, "model.d_model 100 is not divisible by 8 heads"),
        ({"attention.num_kv_heads": 3}, "choose one of 1, 2, 4, 8"),
        ({"attention.num_kv_heads": 16}, "does not divide"),
        ({"attention.num_heads": 4}, "attention.num_kv_heads 8 does not divide 4 attention heads"),
        ({"attention.head_dim": 0}, r"attention\.head_dim"),
        (
            {"attention.head_dim": 1000},
            "attention.head_dim 1000 of 8 heads is so wide that no d_ff keeps",
        ),
        ({"attention.window": 0}, r"attention\.window"),
        ({"attention.placement": "encoder"}, r"attention\.placement: .*choose one of all, decoder"),
        ({"attention.d_ff": "wide"}, r"attention\.d_ff: .*\(choose one of matched, kept\)"),
        ({"hardware.device": "tpu"}, r"hardware\.device: .*\(choose one of cpu, cuda\)"),
        ({"hardware.precision": "int8"}, r"\(choose one of fp32, fp16, bf16\)"),
        ({"hardware.precision": "fp16"}, r"fp16 needs a GPU \(choose fp32"),
        (
            {"hardware.precision": "bf16"},
            r"for TPUs alone .*\(choose fp32 on a CPU",
        ),
        ({"tracking.mode": "yes"}, r"\(choose one of none, offline, online\)"),
        ({"rerun": "all"}, r"rerun: .*\(choose one of prepare, train, convert, uptrain, evaluate"),
        ({"data.max_pieces": 512}, "model.max_positions=512"),
        ({"data.source_lang": "de"}, "source_lang and target_lang are both de"),
        ({"data.mirror": ""}, "data.mirror"),
        ({"train.tokens_per_update": 200}, "longest sentence"),
        ({"train.log_every_updates": 17}, "must divide"),
        ({"train.validate_every_updates": 25}, "at most half"),
        ({"decode.beam": 5000}, "decode.beam=5000 is more than data.vocab_size=4000"),
        ({"train.average_checkpoints": 5}, "more than the 4 checkpoints"),
        (
            {"train.average_checkpoints": 2, "train.max_updates": 900},
            "must divide train.max_updates=.* among those of train.average_checkpoints",
        ),
        ({"train.dropout": 1.0}, "train.dropout"),
        ({"train.learning_rate": INFINITE}, "train.learning_rate"),
        ({"train.learning_rate": NO_NUMBER}, "train.learning_rate"),
        ({"train.learning_rate": 0.0}, "train.learning_rate"),
        ({"train.weight_decay": INFINITE}, "train.weight_decay"),
        ({"train.weight_decay": NO_NUMBER}, "train.weight_decay"),
        ({"train.dropout": NO_NUMBER}, "train.dropout"),
        ({"train.max_updates": "many"}, "train.max_updates: Expected `int`"),
        ({"seed": 2**32}, "seed: Expected `int` <= 4294967295"),
        ({"seed": -1}, "seed: Expected `int` >= 0"),
        ({"hardware.devices": 2}, "hardware.devices"),
        ({"hardware.nodes": 2}, "hardware.master=HOST:PORT"),
        ({"hardware.master": "http://a"}, "hardware.master"),
        ({"hardware.node_rank": 1}, "hardware.node_rank=1 must be below hardware.nodes=1"),
        ({"measure.repeats": 2}, "measure.repeats"),
        ({"measure.shapes": [[128, 1]]}, "measure.shapes.*: Expected `int` >= 2"),
        ({"measure.shapes": []}, "measure.shapes: Expected `array` of length >= 1"),
        (
            {"measure.shapes": [[128, 128], [64, 64], [128, 128]]},
            r"measure.shapes has \[128, 128\] twice",
        ),
        ({"uptrain.alpha": 0.1}, r"uptrain\.alpha and uptrain\.parent are about a trained model"),
        ({"uptrain.parent": "a.pt"}, "are about a trained model .*uptrain=converted"),
        ({"uptrain.method": "mean"}, "attention.d_ff=matched: a converted model keeps its d_ff"),
        ({"decode.length_penalties": []}, "decode.length_penalties"),
        ({"decode.length_penalties": ["gnmt", "gnmt"]}, "decode.length_penalties names one twice"),
        ({"decode.length_penalties": ["other"]}, r"\(choose one of fairseq, gnmt\)"),
        (
            {"decode.engine": "stock", "decode.length_penalties": ["fairseq", "gnmt"]},
            "decode.engine=stock has no gnmt length penalty",
        ),
        ({"paths.runs": ""}, "paths.runs"),
        ({"experiment_name": "../elsewhere"}, "experiment_name"),
    ],
)
def test_what_cannot_be_or_contradicts_itself_is_refused_in_one_line(
    quickstart: SuiteConfig, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ExperimentError, match=words) as caught:
        changed(quickstart, values)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("config: ")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"uptrain.method": "median"}, r"\(choose one of mean, first, random, svd, svd-product\)"),
        ({"uptrain.alpha": 1.1}, "uptrain.alpha: Expected `float` <= 1.0"),
        ({"uptrain.alpha": -0.1}, "uptrain.alpha: Expected `float` >= 0.0"),
        ({"uptrain.alpha": NO_NUMBER}, "uptrain.alpha: Expected `float`"),
        ({"uptrain.alpha": 0.07}, r"uptrain\.alpha=0\.07 is neither 0 nor .*\[0\.05, 0\.1\]"),
        ({"uptrain.points": []}, "uptrain.points: Expected `array` of length >= 1"),
        ({"uptrain.points": [0.1, 0.05]}, r"uptrain\.points=\[0\.1, 0\.05\] must increase"),
        ({"uptrain.points": [0.1, 0.1]}, "must increase"),
        ({"uptrain.points": [0.1, 1.5]}, r"uptrain\.points\[1\]: Expected `float` <= 1.0"),
        ({"uptrain.points": [0.0, 0.1]}, r"uptrain\.points\[0\]: Expected `float` > 0.0"),
        (
            {"uptrain.points": [0.001, 0.002], "uptrain.alpha": 0.002},
            r"of 1,000 updates are \[1, 2\]: an update by itself cannot be timed",
        ),
        ({"attention.num_kv_heads": 3}, "num_kv_heads 3 does not divide 8 attention heads"),
        (
            {"hardware.nodes": 2, "hardware.master": "a:1"},
            "hardware.nodes=2: a model is trained on by one machine",
        ),
    ],
)
def test_an_uptraining_that_cannot_be_is_refused_in_one_line(
    composed: dict[str, Any], values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ExperimentError, match=words) as caught:
        changed(parse_config(composed["uptrain"]), values)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("config: ")


def test_what_is_converted_keeps_its_d_ff(composed: dict[str, Any]) -> None:
    """Whatever experiment it is asked for in."""
    found = parse_config(composed["converted"])
    assert found.architecture.name == "gqa2-ff768"
    assert found.uptrain.method == "svd-product"
    assert found.multi_head == parse_config(composed["mha"] | {"attention": {
        **composed["mha"]["attention"], "d_ff": "kept"}} | {"uptrain": FROM_SCRATCH})  # fmt: skip
    assert found.multi_head.architecture == parse_config(composed["mha"]).architecture


def test_all_contradictions_are_named_at_once(quickstart: SuiteConfig) -> None:
    with pytest.raises(ExperimentError) as caught:
        changed(quickstart, {"train.max_updates": 20, "hardware.devices": 2})
    message = str(caught.value)
    assert "\n" not in message
    for problem in (
        "train.log_every_updates=50 must divide train.max_updates=20",
        "train.log_every_updates=50 must be at most half of train.max_updates=20",
        "train.warmup_updates=200 must be below train.max_updates=20",
        "hardware.devices must be 1 on the CPU",
    ):
        assert message.count(problem) == 1


def local(quickstart: SuiteConfig, **values: Any) -> SuiteConfig:
    files = {f"data.{split}_{s}": "x" for split in ("dev", "test") for s in ("source", "target")}
    train = {f"data.train_{side}": values.get(side, "x") for side in ("source", "target")}
    return changed(quickstart, {"data.name": "local", **files, **train})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda quickstart: local(quickstart, source=""), "train_source"),
        (lambda quickstart: local(quickstart, source="no/such"), "no/such"),
        (
            lambda quickstart: changed(quickstart, {"data.name": "wmt15"}),
            "choose one of sample_en_de, multi30k_en_de, wmt14_en_de, local",
        ),
        (lambda quickstart: changed(quickstart, {"data.target_lang": "fr"}), "target_lang=de"),
        (lambda quickstart: changed(quickstart, {"data.train_source": "x"}), "train_source"),
    ],
)
def test_text_that_cannot_be_used_is_refused_in_one_line(
    quickstart: SuiteConfig, make: Any, words: str
) -> None:
    with pytest.raises(ExperimentError, match=words) as caught:
        job_of(make(quickstart))
    assert "\n" not in str(caught.value)


@given(
    tokens=st.integers(300, 200_000), devices=st.integers(1, 16), capacity=st.integers(300, 50_000)
)
def test_accumulation_leaves_the_device_room_for_padding(
    quickstart: SuiteConfig, tokens: int, devices: int, capacity: int
) -> None:
    raw = msgspec.to_builtins(quickstart)
    raw["train"]["tokens_per_update"] = tokens
    raw["hardware"] |= {
        "device": "cuda", "devices": devices, "max_tokens_per_device": capacity,
    }  # fmt: skip
    raw["data"]["max_pieces"] = 1
    config = parse_config(raw)
    batches = devices * config.update_freq
    assert 1.5 * tokens / batches <= capacity
    if config.update_freq > 1:  # and no more batches than that needs
        assert 1.5 * tokens / (batches - devices) > capacity - 1.5


@pytest.mark.parametrize(
    ("values", "variant"),
    [
        ({"attention.num_kv_heads": 8}, "mha"),
        ({"attention.num_kv_heads": 8, "attention.placement": "decoder"}, "mha"),
        ({"attention.num_kv_heads": 2}, "gqa2"),
        ({"attention.num_kv_heads": 1}, "mqa"),
        ({"attention.num_kv_heads": 1, "attention.placement": "decoder"}, "mqa-dec"),
        ({"attention.num_kv_heads": 1, "attention.d_ff": "kept"}, "mqa-ff768"),
        ({"attention.num_kv_heads": 1, "attention.window": 32}, "mqa-w32"),
        ({"attention.num_kv_heads": 4, "attention.num_heads": 4}, "mha-4x24"),
        ({"attention.num_kv_heads": 8, "attention.head_dim": 16}, "mha-8x16"),
    ],
)
def test_the_variant_has_its_name(
    quickstart: SuiteConfig, values: dict[str, Any], variant: str
) -> None:
    config = changed(quickstart, values)
    assert config.architecture.name == variant
    assert config.name == f"{variant}-seed1"
    job = job_of(config)
    assert job.folder == Path(f"outputs/runs/quickstart/{variant}-seed1-{job.id[:12]}")


def test_commands_of_two_variants_differ_in_heads_and_what_pays_for_them(
    quickstart: SuiteConfig,
) -> None:
    mqa = changed(quickstart, {"attention.num_kv_heads": 1})
    one = train_command(quickstart, Path("bin"), Path("ck"))
    two = train_command(mqa, Path("bin"), Path("ck"))
    assert len(one) == len(two)
    options = zip(pairwise(one), pairwise(two), strict=True)
    differing = {a[0]: (a[1], b[1]) for a, b in options if a[1] != b[1]}
    d_ff = str(mqa.architecture.decoder_d_ff)
    assert differing == {
        "--num-kv-heads": ("8", "1"),
        "--encoder-ffn-embed-dim": ("768", d_ff),
        "--decoder-ffn-embed-dim": ("768", d_ff),
    }


def test_the_command_of_other_heads_says_so(quickstart: SuiteConfig) -> None:
    """Placement decoder: the encoder's options stay the baseline's."""
    local = {"attention.num_kv_heads": 4, "attention.num_heads": 4, "attention.window": 32}
    asked = changed(quickstart, local | {"attention.placement": "decoder"})
    command = train_command(asked, Path("bin"), Path("ck"))
    found = dict(pairwise(command))
    names = [f"--{side}-attention-heads" for side in ("encoder", "decoder")]
    assert [found[name] for name in names] == ["8", "4"]
    assert (found["--decoder-head-dim"], found["--decoder-window"]) == ("24", "32")
    assert "--encoder-head-dim" not in command
    assert found["--encoder-ffn-embed-dim"] == "768"


@pytest.mark.parametrize(("implementation", "prefix"), [("fairseq", ""), ("gqa", "gqa_")])
def test_the_command_names_the_loss_and_the_optimizer(
    quickstart: SuiteConfig, implementation: str, prefix: str
) -> None:
    asked = changed(quickstart, {"train.implementation": implementation})
    found = dict(pairwise(train_command(asked, Path("bin"), Path("ck"))))
    assert found["--criterion"] == f"{prefix}label_smoothed_cross_entropy"
    assert found["--optimizer"] == f"{prefix}adam"


def test_the_command_says_what_the_config_says(composed: dict[str, Any]) -> None:
    command = train_command(
        parse_config(composed["gpu"]), Path("data/bin"), Path("job/checkpoints")
    )
    assert command[:2] == ["fairseq-train", "data/bin"]
    option = dict(pairwise(command))
    assert option["--user-dir"].endswith("gqa_fairseq")
    assert option["--task"] == "gqa_translation"
    assert (option["--source-lang"], option["--target-lang"]) == ("en", "de")
    assert option["--save-dir"] == "job/checkpoints"
    # Nothing is left for the plugin to derive.
    assert option["--encoder-ffn-embed-dim"] == option["--decoder-ffn-embed-dim"] == "768"
    assert "--mha-ffn-embed-dim" not in command
    assert "--fp16" in command
    assert "--cpu" not in command
    assert option["--distributed-world-size"] == "1"
    assert option["--target-tokens-per-update"] == "1000"
    assert (option["--update-freq"], option["--max-tokens"]) == ("1", "16384")
