"""A tiny model is converted and trained on, as jobs do it and as its command does, and killed."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest
import torch
from data_prep_corpus import local_files
from fairseq_commands import losses, succeed
from kept_results import read_records
from suite_configs import ROOT, changed, smoke_config

from experiments.config import SuiteConfig
from experiments.records.record import Finished, Record
from experiments.records.speed import find_measurements
from experiments.records.storage import read_lines, write_json
from experiments.stages.corpus import prepare_data
from experiments.stages.evaluation.evaluate import load_split, load_trained, nll_nats
from experiments.stages.folders import (
    Converted,
    DataFolder,
    Done,
    ModelFolder,
    Uptrained,
)
from experiments.stages.graph import RECIPES, Job, job_of
from experiments.stages.process import Ended
from experiments.stages.runner import Attempt, run_stage
from experiments.stages.training import run
from experiments.stages.training.command import train_command
from experiments.stages.training.run import CheckedCheckpoint
from experiments.stages.uptraining import convert as convert_stage
from experiments.stages.uptraining import parent as parent_stage
from experiments.stages.uptraining.parent import ParentFile, Recipe
from experiments.stages.uptraining.uptrain import uptrain, uptrain_command
from gqa_fairseq.checkpoints.allowlist import read_state
from gqa_fairseq.checkpoints.check import check
from gqa_fairseq.checkpoints.convert import main as convert_main
from gqa_fairseq.checkpoints.recipe import recipe

pytestmark = pytest.mark.slow

GOLDEN = ROOT / "tests/golden/uptraining.json"
UPTRAINED = ["experiment=smoke", "uptrain=converted", "hardware.threads=1"]
POINTS = ["uptrain.points=[0.25,0.5]", "uptrain.alpha=0.5"]
CONVERTED, LAST = 12, 18  # updates
# fairseq's own transformer: embeddings that are not shared, sinusoidal positions, post-norm.
STOCK = [
    *(
        f"--{side}-{option}={value}"
        for side in ("encoder", "decoder")
        for option, value in (("embed-dim", 32), ("attention-heads", 4), ("layers", 1),
                              ("ffn-embed-dim", 64))
    ),
    *("--arch=transformer", "--optimizer=adam", "--adam-betas=(0.9, 0.98)", "--lr=0.002"),
    *("--lr-scheduler=inverse_sqrt", "--warmup-updates=14", "--max-tokens=512", "--cpu"),
    *("--criterion=label_smoothed_cross_entropy", "--label-smoothing=0.1", "--num-workers=0"),
    *(f"--max-update={LAST}", f"--save-interval-updates={CONVERTED}", "--no-epoch-checkpoints"),
    *("--log-format=json", "--log-interval=1"),
]  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SuiteConfig:
    """MHA out of MHA, whose data is prepared and whose parent is trained."""
    folder = tmp_path_factory.mktemp("uptraining")
    paths = [f"paths.{name}={folder}/{name}" for name in ("stages", "runs")]
    found = smoke_config(folder, "uptrain=converted", *POINTS, "attention=mha", *paths)
    job = job_of(found)
    data = prepare_data(found, job.prepare)
    command = train_command(found.multi_head, data.binarized, parent_of(job).checkpoints)
    succeed("train", *command[1:], folder=ROOT, log=folder / "parent.log")
    return found


def parent_of(job: Job) -> ModelFolder:
    return ModelFolder(job.train.folder)


def data_of(job: Job) -> DataFolder:
    return DataFolder(job.prepare.folder, "en", "de")


@pytest.fixture(autouse=True)
def in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversions and checks, whose processes would import fairseq each; not in long tests."""
    if request.node.get_closest_marker("long"):
        return

    def convert_here(command: list[str], *arguments: object) -> Ended:
        assert convert_main(command[3:]) == 0
        return Ended(wall_s=0.0, peak_rss_bytes=1)

    def check_here(attempt: object, checkpoint: Path) -> CheckedCheckpoint:
        return CheckedCheckpoint(**check(checkpoint))

    monkeypatch.setattr(convert_stage, "run_command", convert_here)
    monkeypatch.setattr(convert_stage, "check", check_here)
    monkeypatch.setattr(run, "check", check_here)


def converted(job: Job) -> Path:
    """The model of the job's convert stage."""
    stage = job.stage("convert")
    assert stage is not None

    def work(attempt: Attempt) -> Converted:
        return convert_stage.convert(attempt, job, data_of(job), parent_of(job).last)

    result = run_stage(stage, Converted, work, threads=1).result
    assert result.parent_updates == CONVERTED
    return stage.folder / result.checkpoint


def uptrained(job: Job, checkpoint: Path) -> Done[Uptrained]:
    """The models of the job's uptrain stage."""

    def work(attempt: Attempt) -> Uptrained:
        return uptrain(attempt, job, data_of(job), checkpoint)

    return run_stage(job.model, Uptrained, work, threads=1)


def dev_loss(checkpoint: Path, job: Job) -> tuple[float, int]:
    """Summed over dev, as the evaluation does."""
    data = data_of(job)
    model, task = load_trained(checkpoint, data.binarized)
    lines = len(read_lines(data.text("dev", "de")))
    return nll_nats(model, load_split(task, "dev", lines), 64)


def test_the_control_starts_as_its_parent_bit_for_bit(config: SuiteConfig) -> None:
    job = job_of(config)
    assert job.method == "identity"
    checkpoint, parent = converted(job), parent_of(job).last
    assert dev_loss(checkpoint, job) == dev_loss(parent, job)
    mqa = job_of(changed(config, {"attention.num_kv_heads": 1}))
    assert dev_loss(converted(mqa), mqa) != dev_loss(parent, mqa)


@pytest.fixture
def job(config: SuiteConfig, tmp_path: Path) -> Job:
    """MQA out of MHA, whose run has a folder of its own."""
    mqa = changed(config, {"attention.num_kv_heads": 1})
    shared, own = job_of(mqa), job_of(changed(mqa, {"paths.stages": f"{tmp_path}/stages"}))
    stages = (*shared.stages[:3], *own.stages[3:])
    return msgspec.structs.replace(own, stages=stages)


@pytest.fixture
def whole(job: Job, tmp_path: Path) -> Path:
    """The last checkpoint of the published command, to the last point in one process."""
    train_to(job, 6, tmp_path / "whole")
    return tmp_path / "whole/checkpoint_last.pt"


def train_to(job: Job, updates: int, checkpoints: Path) -> str:
    """Run the uptrain command without the stage; returns its output."""
    command = uptrain_command(job, data_of(job).binarized, checkpoints, converted(job), updates)
    log = checkpoints.with_suffix(".log")
    return succeed("train", *command[1:], folder=ROOT, log=log).output


@pytest.mark.long
def test_an_interrupted_uptraining_ends_as_its_command_does_in_one_run(
    job: Job, whole: Path
) -> None:
    """As after a kill in the second part, whose last checkpoint was of its first update."""
    folder = ModelFolder(job.model.folder)
    folder.log("uptrain").parent.mkdir(parents=True)
    with folder.log("uptrain").open("w", encoding="utf-8") as log:
        log.write(train_to(job, 3, folder.checkpoints))
        shutil.copyfile(folder.last, folder.checkpoints / "uptrained_3.pt")
        log.write(train_to(job, 4, folder.checkpoints))
    found = uptrained(job, converted(job)).result
    check_uptrained(found, folder, whole)
    check_golden(found, job)
    text = folder.log("uptrain").read_text(encoding="utf-8")
    assert f"@ {CONVERTED + 4} updates)" in text.split("Loaded checkpoint")[-1].split("\n")[0]


def check_golden(uptraining: Uptrained, job: Job) -> None:
    """A result moves only with its recipe, as test_smoke.py has it of the other stages.

    `GOLDEN=write` in the environment writes what was found, for a recipe that was raised.
    """
    nll, tokens = dev_loss(converted(job), job)
    curve = uptraining.points[-1].training.curve
    found = {
        "recipes": {name: RECIPES[name] for name in ("convert", "uptrain")},
        "convert": nll / tokens,
        "uptrain": [point.train_nll_nats_per_token for point in curve],
    }
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    kept = msgspec.json.decode(GOLDEN.read_bytes())
    assert found["recipes"] == kept["recipes"], "run this test once with GOLDEN=write"
    # Processors differ in the last digits of sums.
    assert found["convert"] == pytest.approx(kept["convert"], rel=2e-3)
    assert found["uptrain"] == pytest.approx(kept["uptrain"], rel=2e-3)


@pytest.mark.long
def test_a_killed_uptraining_ends_as_its_command_does_in_one_run(
    job: Job, whole: Path, tmp_path: Path
) -> None:
    kill_after_first_point(job, converted(job), tmp_path)
    folder = ModelFolder(job.model.folder)
    assert {path.name for path in folder.checkpoints.glob("uptrained_*")} == {"uptrained_3.pt"}
    first = (folder.checkpoints / "uptrained_3.pt").stat().st_mtime_ns
    done = uptrained(job, converted(job))
    assert done.info.tries == 2
    assert (folder.checkpoints / "uptrained_3.pt").stat().st_mtime_ns == first
    check_uptrained(done.result, folder, whole)


def check_uptrained(found: Uptrained, folder: ModelFolder, whole: Path) -> None:
    """Both points are there, and the last is that of an uninterrupted run, bit for bit."""
    assert [point.training.updates for point in found.points] == [3, 6]
    for point in found.points:
        assert point.training.curve[-1].dev_nll_nats_per_token is not None
    one, other = read_state(whole), read_state(folder.path / found.points[-1].checkpoint)
    assert one["optimizer_history"][-1]["num_updates"] == LAST
    assert one["extra_state"]["train_iterator"] == other["extra_state"]["train_iterator"]
    for name, weight in one["model"].items():
        assert torch.equal(weight, other["model"][name]), name


def kill_after_first_point(job: Job, checkpoint: Path, folder: Path) -> None:
    """Uptrain in a process that is killed, with SIGKILL, when the first point was kept."""
    code = (
        "import sys; from pathlib import Path; from experiments.config import SuiteConfig\n"
        "from experiments.records.storage import read_json\n"
        "from experiments.stages.folders import DataFolder, Uptrained\n"
        "from experiments.stages.graph import job_of\n"
        "from experiments.stages.runner import run_stage\n"
        "from experiments.stages.uptraining.uptrain import uptrain\n"
        "job = job_of(read_json(Path(sys.argv[1]), SuiteConfig))\n"
        "data = DataFolder(job.prepare.folder, 'en', 'de')\n"
        "work = lambda a: uptrain(a, job, data, Path(sys.argv[2]))\n"
        "run_stage(job.model, Uptrained, work, 1)\n"
    )
    write_json(folder / "config.json", job.config)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder / "config.json"), str(checkpoint)],
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=ROOT,
    ) as process:  # fmt: skip
        while not (ModelFolder(job.model.folder).checkpoints / "uptrained_3.pt").exists():
            assert process.poll() is None
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_a_stock_checkpoint_goes_on_with_its_own_recipe(
    config: SuiteConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learning rates and batches are those of the parent's own training from there."""
    binarized, last = data_of(job_of(config)).binarized, "checkpoints/checkpoint_1_12.pt"
    whole = succeed("train", binarized, *STOCK, folder=tmp_path)
    monkeypatch.setattr(parent_stage, "_read", read_here)
    foreign = {"attention.num_kv_heads": 1, "uptrain.parent": str(tmp_path / last)}
    job = job_of(changed(config, foreign))
    assert job.parent is not None
    assert job.parent.check_dictionaries(data_of(job)) is None
    command = convert_stage.convert_command(job, job.parent.path, ModelFolder(tmp_path))
    assert convert_main(command[3:]) == 0
    found = ModelFolder(tmp_path).converted
    model, _ = load_trained(found, data_of(job).binarized)
    assert sum(p.numel() for p in model.parameters()) == job.architecture.parameters
    command = uptrain_command(job, binarized, tmp_path / "more", found, 6)
    more = succeed("train", *command[1:], folder=ROOT, log=tmp_path / "more.log")
    for figure in ("lr", "wpb", "bsz"):
        expected = losses(whole, figure)
        assert losses(more, figure) == {n: expected[n] for n in range(CONVERTED + 1, LAST + 1)}
    assert check(tmp_path / "more/checkpoint_last.pt")["updates"] == LAST
    state = read_state(found)
    state["cfg"]["lr_scheduler"]["_name"] = "cosine"
    with pytest.raises(ValueError, match="its lr_scheduler is cosine, and a training goes on with"):
        recipe(state)


def read_here(path: Path, modified_ns: int) -> ParentFile:
    """What the recipe's own process says."""
    text = json.dumps(recipe(read_state(path)))
    found = msgspec.json.decode(text, type=Recipe)
    return ParentFile(path=path, sha256="0" * 64, recipe=found)


@pytest.mark.long
def test_a_sweep_of_uptrainings(config: SuiteConfig, tmp_path: Path) -> None:
    """From the command line: the parent once, each run once, and one measurement."""
    names = ("stages", "runs", "measurements", "report")
    files = local_files(tmp_path / "text")
    sweep = [
        "attention.num_kv_heads=1,4", "uptrain.method=mean,svd-product",
        "uptrain.points=[0.25,0.5]", "uptrain.alpha=0,0.25,0.5",
    ]  # fmt: skip
    done = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.run", "-m", *UPTRAINED, *sweep, *files),
            *(f"paths.{name}={tmp_path}/{name}" for name in names),
            f"paths.data={config.paths.data}",
        ],
        capture_output=True, text=True, cwd=ROOT, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = {path.name: len(list(path.iterdir())) for path in (tmp_path / "stages").iterdir()}
    assert counts == {"train": 1, "convert": 3, "uptrain": 3, "evaluate": 9}
    records = {record.variant: record for record in read_records(tmp_path / "runs")}
    assert set(records) == {
        f"{name}-{alpha}"
        for name in ("mha-identity", "mqa-ff64-mean", "mqa-ff64-svd-product")
        for alpha in ("0", "0.25", "0.5")
    }
    [measurement] = find_measurements([tmp_path / "runs"], [tmp_path / "measurements"])
    assert measurement.jobs == {record.job.id for record in records.values()}
    assert len(measurement.timings[0].samples) == 2
    for record in records.values():
        check_record(record)
    report = (tmp_path / "report/report.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in report for name in records)


def check_record(record: Record) -> None:
    assert isinstance(record.result, Finished)
    assert record.uptraining is not None
    updates = record.uptraining.updates
    training = record.result.training
    assert (training.updates if training else 0) == updates
    if training:
        # The loss of our evaluation is fairseq's at the point, which is logged to 1e-3 bits.
        last = training.curve[-1].dev_nll_nats_per_token
        assert record.result.evaluation.dev_nll_nats_per_token == pytest.approx(last, abs=1e-3)
