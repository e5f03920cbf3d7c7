"""What WMT14 would run: the commands of all variants on all hardware, without data or fairseq."""

import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from suite_configs import ROOT, compose_config

from experiments.stages.describe import print_plan
from experiments.stages.graph import plan as stages_of

VARIANTS = {"mha": 4096, "gqa4": 4864, "gqa2": 5248, "mqa": 5440}  # Shazeer 2019 and between
PRESETS = ("cpu", "gpu1", "gpu4", "gpu8")

DRY_RUN = """
import sys
from experiments.run import main

sys.argv = ["run", "-m", "experiment=wmt14", "dry_run=true", *sys.argv[1:]]
try:
    main()
finally:
    loaded = {name.split(".")[0] for name in sys.modules}
    print("loaded:", *({"torch", "fairseq", "wandb"} & loaded))
"""


class Block(NamedTuple):
    """A stage of the printed plan: `name` is prepare, train, evaluate or measure."""

    name: str
    folder: str
    notes: list[str]
    command: list[str]
    is_done: bool


def blocks(printed: str) -> list[Block]:
    """The stages of a plan; every line of it belongs to one."""
    found = []
    for text in re.split(r"^# (?=\w)", printed, flags=re.MULTILINE)[1:]:
        title, *notes, command = text.removesuffix("\n").split("\n")
        assert all(line.startswith("#   ") for line in notes)
        stage, _, state = title.partition(": ")
        name, folder = stage.split(" ")
        assert state in ("", "done")
        notes = [line.removeprefix("#   ") for line in notes]
        found.append(Block(name, folder, notes, shlex.split(command), state == "done"))
    return found


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> list[Block]:
    """All variants on all presets; nothing is written for it."""
    folder = tmp_path_factory.mktemp("dry")
    sweep = [f"attention={','.join(VARIANTS)}", f"hardware={','.join(PRESETS)}"]
    done = subprocess.run(
        [sys.executable, "-c", DRY_RUN, *sweep],
        capture_output=True, text=True, cwd=folder, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed, loaded = done.stdout.split("loaded:")
    assert loaded == "\n"
    assert not list(folder.iterdir())
    return blocks(printed)


@pytest.fixture(scope="module")
def trainings(plan: list[Block]) -> dict[tuple[str, str], Block]:
    """By variant and preset, in the order of the sweep."""
    found = [block for block in plan if block.name == "train"]
    keys = [(variant, preset) for variant in VARIANTS for preset in PRESETS]
    return dict(zip(keys, found, strict=True))


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


def test_each_stage_is_shown_once_with_its_command(plan: list[Block]) -> None:
    counts = Counter(block.name for block in plan)
    jobs = len(VARIANTS) * len(PRESETS)
    # cpu is measured otherwise than the others, which differ in the training alone.
    assert counts == {"prepare": 1, "train": jobs, "evaluate": jobs, "measure": 2}
    assert len({block.folder for block in plan}) == len(plan)
    assert not any(block.is_done for block in plan)
    modules = {
        "prepare": "data_prep",
        "evaluate": "experiments.stages.evaluation",
        "measure": "experiments.measure",
    }
    for block in plan:
        if block.name == "train":
            assert block.command[0] == "fairseq-train"
            assert len(block.notes) == 3
        else:
            assert block.command[1:3] == ["-m", modules[block.name]]
            assert block.notes == []
    first = [block.name for block in plan[:3]]
    assert first == ["prepare", "train", "evaluate"]
    assert [block.name for block in plan[-2:]] == ["measure", "measure"]


def test_commands_name_the_folders_of_their_stages(plan: list[Block]) -> None:
    [prepare] = [block for block in plan if block.name == "prepare"]
    assert option(prepare.command, "--out") == f"outputs/data/{prepare.folder}"
    for block in plan:
        if block.name == "train":
            assert block.command[1] == f"outputs/data/{prepare.folder}/bin"
            checkpoints = f"outputs/stages/train/{block.folder}/checkpoints"
            assert option(block.command, "--save-dir") == checkpoints
        if block.name == "evaluate":
            assert block.command[3] == f"outputs/stages/evaluate/{block.folder}"
        if block.name == "measure":
            folder = f"outputs/measurements/wmt14/{block.folder}"
            assert block.command[3:] == [f"{folder}/request.json", f"{folder}/measurement.json"]


def test_variants_differ_in_heads_widths_and_folder_and_have_the_papers_widths(
    trainings: dict[tuple[str, str], Block],
) -> None:
    heads = {"mha": 8, "gqa4": 4, "gqa2": 2, "mqa": 1}
    for preset in PRESETS:
        mha = trainings["mha", preset].command
        for variant, d_ff in VARIANTS.items():
            block = trainings[variant, preset]
            assert block.folder.startswith(f"{variant}-seed1-")
            assert block.notes[1] == (
                f"209,523,712 parameters, d_ff {d_ff} (encoder) and {d_ff} (decoder)"
            )
            names = {
                name
                for name, one, other in zip(mha, mha[1:], block.command[1:], strict=False)
                if one != other
            }
            widths = {f"--{side}-ffn-embed-dim" for side in ("encoder", "decoder")}
            differing = {"--num-kv-heads", "--save-dir", *widths}
            assert len(mha) == len(block.command)
            assert names == (differing if variant != "mha" else set())
            assert option(block.command, "--num-kv-heads") == str(heads[variant])
            assert {option(block.command, name) for name in widths} == {str(d_ff)}


def test_an_update_is_32768_target_tokens_on_all_hardware(
    trainings: dict[tuple[str, str], Block],
) -> None:
    for preset in PRESETS:
        arguments = trainings["mqa", preset].command
        assert option(arguments, "--target-tokens-per-update") == "32768"
        assert option(arguments, "--max-update") == "100000"
        devices = int(option(arguments, "--distributed-world-size"))
        assert devices == (int(preset.removeprefix("gpu")) if preset != "cpu" else 1)
        batch = 32768 / devices / int(option(arguments, "--update-freq"))
        assert batch * 1.5 <= int(option(arguments, "--max-tokens"))
        note = trainings["mqa", preset].notes[0]
        said = re.search(r"an update is (\d+) x ([\d,]+) on (\d+)", note)
        assert said is not None
        assert [int(number.replace(",", "")) for number in said.groups()] == [
            int(option(arguments, "--update-freq")), round(batch), devices,
        ]  # fmt: skip
        assert ("--fp16" in arguments) == (preset != "cpu")


def test_the_plan_says_what_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = ("data", "stages", "runs", "measurements", "report")
    config = compose_config(
        "experiment=quickstart", *(f"paths.{name}={tmp_path}/{name}" for name in paths)
    )
    jobs, stages = stages_of([config])
    for stage, result in ((jobs[0].prepare, "manifest.json"), (jobs[0].train, "result.json")):
        stage.folder.mkdir(parents=True)
        (stage.folder / result).touch()
    print_plan(jobs, stages)
    found = {block.name: block.is_done for block in blocks(capsys.readouterr().out)}
    assert found == {"prepare": True, "train": True, "evaluate": False, "measure": False}


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A target of the Makefile in this environment; `-o setup`: nothing is installed."""
    binaries = Path(sys.executable).parent
    return subprocess.run(
        ["make", "-s", "-o", "setup", f"BIN={binaries}", *arguments],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip


def test_make_passes_on_what_it_is_given() -> None:
    done = make(
        "wmt14-sweep", "DRY_RUN=1", "SEEDS=2,3", "KV_HEADS=2", "PLACEMENT=decoder", "HARDWARE=gpu4",
        "MIRROR=/a folder", "ARGS=train.dropout=0.3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [block for block in blocks(done.stdout) if block.name == "train"]
    assert [block.folder[:15] for block in found] == ["gqa2-dec-seed2-", "gqa2-dec-seed3-"]
    trainings = [block.command for block in found]
    assert [option(each, "--dropout") for each in trainings] == ["0.3", "0.3"]
    assert [option(each, "--distributed-world-size") for each in trainings] == ["4", "4"]
    assert "--mirror '/a folder'" in done.stdout


def test_make_study_runs_a_seed_and_its_uptraining_before_the_next_seed() -> None:
    done = make("study", "DRY_RUN=1", "SEEDS=2,3", "MIRROR=/a folder", "ARGS=train.dropout=0.3")
    assert done.returncode == 0, done.stderr
    found = [block.folder for block in blocks(done.stdout) if block.name in {"train", "uptrain"}]
    kinds = [folder.split("-seed") for folder in found]
    assert [(seed[0], name) for name, seed in kinds] == [
        (seed, name)
        for seed in "23"
        for name in (
            "mha", "gqa2", "mqa", "mha", "mha-identity",
            *(f"{variant}-ff512-{method}" for variant in ("gqa2", "mqa")
              for method in ("mean", "first", "random", "svd-product")),
        )
    ]  # fmt: skip
    # The parent of the uptraining is the seed's own multi-head model, trained once.
    assert found[0] == found[3]
    assert "--mirror '/a folder'" in done.stdout


def test_make_study_more_trains_the_others_beside_one_multi_head_model_of_each_size() -> None:
    done = make("study-more", "DRY_RUN=1", "SEEDS=2")
    assert done.returncode == 0, done.stderr
    found = [block.folder for block in blocks(done.stdout) if block.name == "train"]
    assert [folder.split("-seed2-")[0] for folder in found] == [
        "mha", "gqa4", "mha-4x32", "mha", "gqa2-dec", "mqa-dec", "mha", "mha-1x16", "mha", "mha-w8",
        "mha", "mha", "mqa", "mqa",
    ]  # fmt: skip
    multi_head = [folder for folder in found if folder.startswith("mha-seed")]
    *beside_others, narrow = multi_head
    assert len(set(beside_others)) == 1
    assert narrow not in beside_others


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wmt14-mqa", "HARDWARE=tpu"], "error: HARDWARE=tpu is unknown: choose one of cpu gpu1"),
        (["wmt14", "PLACEMENT=encoder"], "error: PLACEMENT=encoder is unknown: choose all or"),
        (["study-l10n", "ARGS=data.train_source=none.en"], "error: data: none.en: No such file"),
        (["wmt14-sweep", "KV_HEADS=3"], "error: config: attention.num_kv_heads 3 does not divide"),
    ],
)
def test_make_refuses_with_one_line(arguments: list[str], message: str) -> None:
    done = make(*arguments, "DRY_RUN=1")
    assert done.returncode != 0
    assert done.stdout == ""
    first, *rest = done.stderr.strip().split("\n")
    assert first.startswith(message)
    assert [line.split(":")[0] for line in rest] == ["make"]
