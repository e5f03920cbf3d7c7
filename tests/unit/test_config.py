"""What is composed and refused, what two variants share, and what a job's id depends on.

Composition runs in a process of its own, as for a user: fairseq, which other tests import, adds
to Hydra's store.
"""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from experiments.layout import data_folder, job_folder
from experiments.train import train_command
from hypothesis import given
from hypothesis import strategies as st

from experiments.config import SuiteConfig, job_id, parse_config, scientific_config
from experiments.errors import ExperimentError

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf/experiment").glob("*.yaml"))
FILES = [
    f"data.{split}_{side}=x" for split in ("train", "dev", "test") for side in ("source", "target")
]

# One process composes every case: starting Hydra takes longer than composing.
COMPOSE = """
import json, sys
import msgspec
from hydra import compose, initialize_config_dir
from experiments.run import resolve

with initialize_config_dir(sys.argv[1], version_base="1.3"):
    configs = [resolve(compose("suite", overrides=case)) for case in json.loads(sys.argv[2])]
loaded = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps({"configs": msgspec.to_builtins(configs), "modules": loaded}))
"""


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )


def compose_all(cases: list[list[str]]) -> dict[str, Any]:
    done = run_python("-c", COMPOSE, str(ROOT / "conf"), json.dumps(cases))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def composed() -> dict[str, Any]:
    cases = {
        "default": [],
        "mha": ["experiment=quickstart"],
        "mqa": ["experiment=quickstart", "attention=mqa"],
        "gpu": ["experiment=quickstart", "hardware=gpu1"],
        "decode": ["experiment=quickstart", "decode=wmt14"],
        **{name: [f"experiment={name}", *FILES * (name == "smoke")] for name in EXPERIMENTS},
    }
    result = compose_all(list(cases.values()))
    return {"modules": result["modules"], **dict(zip(cases, result["configs"], strict=True))}


@pytest.fixture(scope="session")
def quickstart(composed: dict[str, Any]) -> SuiteConfig:
    return parse_config(composed["mha"])


def changed(config: SuiteConfig, **values: Any) -> SuiteConfig:
    """`config` with `section__key=value`, checked again."""
    raw = msgspec.to_builtins(config)
    for name, value in values.items():
        *sections, key = name.split("__")
        target = raw
        for section in sections:
            target = target[section]
        target[key] = value
    return parse_config(raw)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_under_its_own_name(composed: dict[str, Any], name: str) -> None:
    assert parse_config(composed[name]).experiment_name == name


def test_composing_imports_neither_torch_nor_fairseq_nor_the_plugin(
    composed: dict[str, Any],
) -> None:
    assert "experiments" in composed["modules"]
    assert not {"torch", "fairseq", "gqa_fairseq", "data_prep"} & set(composed["modules"])


def test_variants_differ_in_attention_only(composed: dict[str, Any]) -> None:
    mha, mqa = composed["mha"], composed["mqa"]
    assert mha["attention"] == {"num_kv_heads": 8, "placement": "all"}
    assert mqa["attention"] == {"num_kv_heads": 1, "placement": "all"}
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
        ("+model.nonsense=1", "nonsense"),
        ("attention=gqa3", "gqa3"),
        ("attention.num_kv_heads=3", "choose one of 1, 2, 4, 8"),
        ("attention.num_kv_heads=16", "does not divide"),
        ("train.max_updates=many", "train.max_updates"),
        ("data=local", "data.train_source"),
        ("decode=wmt14 decode.engine=stock", "decode.engine=stock has no gnmt length penalty"),
        ("hardware=gpu1 hardware.devices=4", "hardware=cpu"),
    ],
)
def test_the_command_refuses_before_any_work(tmp_path: Path, override: str, words: str) -> None:
    done = run_python(
        "-m", "experiments.run", "experiment=quickstart", *override.split(),
        f"paths.data={tmp_path}/data", f"paths.runs={tmp_path}/runs",
    )  # fmt: skip
    assert done.returncode in (1, 2)  # 1 is Hydra's own
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_sweep_is_refused_for_its_last_job(tmp_path: Path) -> None:
    done = run_python(
        "-m", "experiments.run", "-m", "experiment=quickstart", "attention.num_kv_heads=1,2,3",
        f"paths.data={tmp_path}/data", f"paths.runs={tmp_path}/runs",
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: config: attention.num_kv_heads=3 does not divide")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model__d_model": 100}, "does not divide model.d_model=100"),
        ({"data__max_pieces": 512}, "model.max_positions=512"),
        ({"train__tokens_per_update": 200}, "longest sentence"),
        ({"train__log_every_updates": 17}, "must divide"),
        ({"train__validate_every_updates": 25}, "at most half"),
        ({"hardware__devices": 2}, "hardware.devices"),
        ({"hardware__nodes": 2}, "hardware.master=HOST:PORT"),
        ({"hardware__master": "http://a"}, "hardware.master"),
        ({"hardware__node_rank": 1}, "hardware.node_rank=1 must be below hardware.nodes=1"),
        ({"train__average_checkpoints": 3}, "more than the 2 checkpoints"),
        ({"train__dropout": 1.0}, "train.dropout"),
        ({"benchmark__repeats": 2}, "benchmark.repeats"),
        ({"decode__length_penalties": []}, "decode.length_penalties"),
        ({"decode__length_penalties": ["gnmt", "gnmt"]}, "decode.length_penalties names one twice"),
        ({"decode__length_penalties": ["other"]}, "decode.length_penalties"),
    ],
)
def test_what_contradicts_itself_is_refused(
    quickstart: SuiteConfig, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ExperimentError, match=words):
        changed(quickstart, **values)


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
        ({"attention__num_kv_heads": 8}, "mha"),
        ({"attention__num_kv_heads": 8, "attention__placement": "decoder"}, "mha"),
        ({"attention__num_kv_heads": 2}, "gqa2"),
        ({"attention__num_kv_heads": 1}, "mqa"),
        ({"attention__num_kv_heads": 1, "attention__placement": "decoder"}, "mqa-dec"),
    ],
)
def test_the_variant_has_its_name(
    quickstart: SuiteConfig, values: dict[str, Any], variant: str
) -> None:
    config = changed(quickstart, **values)
    assert config.variant == variant
    assert job_folder(config, "0123456789abcdef").path.name == f"{variant}-seed1-0123456789ab"


def test_the_id_changes_with_what_the_result_depends_on(quickstart: SuiteConfig) -> None:
    base = job_id(quickstart, "data", "code")
    assert base == job_id(quickstart, "data", "code")
    others = [
        job_id(quickstart, "other", "code"),
        job_id(quickstart, "data", "other"),
        job_id(changed(quickstart, seed=2), "data", "code"),
        job_id(changed(quickstart, attention__num_kv_heads=4), "data", "code"),
        job_id(changed(quickstart, train__learning_rate=0.1), "data", "code"),
        job_id(changed(quickstart, decode__length_alpha=1.0), "data", "code"),
        job_id(changed(quickstart, decode__length_penalties=["gnmt"]), "data", "code"),
        job_id(changed(quickstart, hardware__precision="bf16"), "data", "code"),
    ]
    assert len({base, *others}) == 1 + len(others)


@pytest.mark.parametrize(
    "values",
    [
        {"force": True},
        {"experiment_name": "other"},
        {"paths__runs": "elsewhere"},
        {"tracking__mode": "offline"},
        {"data__mirror": "/somewhere"},
        {"dry_run": True},
        {"hardware__master": "first:29500"},
    ],
)
def test_the_id_does_not_change_with_the_rest(
    quickstart: SuiteConfig, values: dict[str, Any]
) -> None:
    assert job_id(changed(quickstart, **values), "d", "c") == job_id(quickstart, "d", "c")


def test_the_scientific_config_is_all_but_names_folders_and_origins(
    quickstart: SuiteConfig,
) -> None:
    kept = scientific_config(quickstart)
    assert set(kept) == {
        "attention", "model", "data", "train", "decode", "benchmark", "hardware", "seed",
    }  # fmt: skip
    assert set(kept["data"]) == {"name", "vocab_size", "max_pieces", "max_ratio"}


def test_other_data_settings_go_to_another_folder(quickstart: SuiteConfig) -> None:
    folder = data_folder(quickstart)
    assert data_folder(changed(quickstart, data__mirror="/somewhere", seed=3)) == folder
    assert data_folder(changed(quickstart, data__vocab_size=100)) != folder
    assert data_folder(changed(quickstart, data__train_source="a.en")) != folder
    assert data_folder(changed(quickstart, data__sources="table.json")) != folder


def test_commands_of_two_variants_differ_in_kv_heads_only(quickstart: SuiteConfig) -> None:
    mqa = changed(quickstart, attention__num_kv_heads=1)
    one = train_command(quickstart, Path("bin"), Path("ck"))
    two = train_command(mqa, Path("bin"), Path("ck"))
    assert len(one) == len(two)
    assert [(a, b) for a, b in zip(one, two, strict=True) if a != b] == [("8", "1")]
    assert one[one.index("--num-kv-heads") + 1] == "8"
    assert two[two.index("--num-kv-heads") + 1] == "1"


def test_the_command_says_what_the_config_says(composed: dict[str, Any]) -> None:
    command = train_command(
        parse_config(composed["gpu"]), Path("data/bin"), Path("job/checkpoints")
    )
    assert command[:2] == ["fairseq-train", "data/bin"]
    option = dict(pairwise(command))
    assert option["--user-dir"].endswith("gqa_fairseq")
    assert option["--task"] == "gqa_translation"
    assert option["--mha-ffn-embed-dim"] == "768"
    assert option["--save-dir"] == "job/checkpoints"
    assert "--encoder-ffn-embed-dim" not in command  # derived by the plugin
    assert "--bf16" in command
    assert "--cpu" not in command
    assert option["--distributed-world-size"] == "1"
    assert option["--target-tokens-per-update"] == "864"
    assert (option["--update-freq"], option["--max-tokens"]) == ("1", "16384")
