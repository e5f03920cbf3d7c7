"""Folders of any name: each character works, or is refused at the start in one line."""

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from documented import dry_runs
from suite_configs import changed, compose_config

from experiments.config import SuiteConfig
from experiments.errors import ExperimentError
from experiments.progress import StageView
from experiments.run import main
from experiments.stages.folders import ModelFolder
from experiments.stages.graph import job_of
from experiments.stages.sweep import check_overrides
from experiments.stages.training.command import train_command

ODD = [chr(code) for code in range(32, 127) if not chr(code).isalnum() and chr(code) not in "/:"]
ODD += ["ü", "漢", "\u2028", "😀", "[red]", "[/]", "a,b", "%s", "{task}", "' or \""]


@pytest.fixture(scope="module")
def config() -> SuiteConfig:
    return compose_config("experiment=smoke", "data=sample_en_de")


# In a process of its own: fairseq and the suite want different versions of Hydra's interface.
READ = """
import json, sys
from fairseq import options, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
import gqa_fairseq.models, gqa_fairseq.tasks

found = []
for command in json.load(sys.stdin):
    read = options.parse_args_and_arch(options.get_training_parser(), command)
    config = convert_namespace_to_omegaconf(read)
    found.append([utils.split_paths(config.task.data), config.checkpoint.save_dir])
print(json.dumps(found))
"""


def test_fairseq_takes_the_folders_of_a_job_as_they_are(config: SuiteConfig) -> None:
    commands, expected = [], []
    # All of them in one name, then by themselves those that quote, escape or open something.
    for odd in ("".join(ODD).replace("${", "{"), "'", '"', "\\", "[", "{x}"):
        for folder in (f"a{odd}b", f"{odd}"):
            paths = {f"paths.{name}": f"/tmp/{folder}/{name}" for name in ("data", "stages")}
            job = job_of(changed(config, paths))
            data, checkpoints = (
                job.prepare.folder / "bin",
                ModelFolder(job.train.folder).checkpoints,
            )
            commands.append(train_command(job.config, data, checkpoints)[1:])
            expected.append([[str(data)], str(checkpoints)])
    done = subprocess.run(
        [sys.executable, "-c", READ], input=json.dumps(commands), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1500:]
    assert json.loads(done.stdout.splitlines()[-1]) == expected


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("data", "/tmp/a:b"),
        ("data", "a:b"),
        ("data", "${x}"),
        ("stages", "/tmp/${x}"),
        ("data", "/tmp/a\nb"),
        ("runs", "a\x07b"),
        ("stages", "a\udcffb"),
        ("report", "a\tb"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(
    name: str, folder: str, config: SuiteConfig
) -> None:
    with pytest.raises(ExperimentError, match=f"paths.{name}: ") as caught:
        job_of(changed(config, {f"paths.{name}": folder}) if folder.isascii() else
               surrogate(config, name, folder))  # fmt: skip
    assert str(caught.value).isprintable()


def surrogate(config: SuiteConfig, name: str, folder: str) -> SuiteConfig:
    """A config as Hydra makes it of an argument that is no UTF-8; JSON has no such text."""
    from msgspec.structs import replace

    return replace(config, paths=replace(config.paths, **{name: folder}))


def test_a_current_folder_with_a_colon_is_refused(
    tmp_path: Path, config: SuiteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a:b").mkdir()
    monkeypatch.chdir(tmp_path / "a:b")
    with pytest.raises(ExperimentError, match=r"fairseq divides .*a:b/outputs/data at ':'"):
        job_of(config)


@pytest.mark.parametrize("given", ["paths.data=a,b", "paths.data=a'b", "paths.runs=[x]y", "a.b=}"])
def test_an_override_that_hydra_would_not_take_is_one_line(
    given: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run", "experiment=smoke", given])
    assert main() == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: {given}: ")
    assert shown.count("\n") == 1
    assert "quote text for Hydra: " in shown


UNKNOWN = [
    (["train.max_update=9"], "train.max_update: there is no such setting (did you mean train."),
    (["foo=1"], "foo: there is no such setting (experiments/config.py has them all)"),
    (["data.train_source=x"], "data.train_source: this data has no such setting (choose "),
    (["attention=mla"], "attention=mla: not in conf/attention (choose one of base, gqa2, "),
    (["-m", "attention=mha,mla"], "attention=mla: not in conf/attention (choose one of base, "),
    (["-m", "seed=1,2", "foo=1"], "foo: there is no such setting"),
    (["experiment=none"], "experiment=none: not in conf/experiment (choose one of multi30k, "),
    (["+foo=1"], "config: "),
]


def test_a_setting_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    found = dry_runs([["experiments.run", *given] for given, _ in UNKNOWN], tmp_path)
    for result, (_, message) in zip(found, UNKNOWN, strict=True):
        assert result["code"] == (2 if message == "config: " else 1)
        assert result["output"].startswith(f"error: {message}")
        assert result["output"].count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_quoted_home_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    config = compose_config("experiment=smoke", "data=sample_en_de", 'paths.runs="~/my runs"')
    assert config.paths.runs == "/home/someone/my runs"


def test_the_advice_is_an_override_that_hydra_takes() -> None:
    for given in ("paths.data=a,b", "paths.data=a'b c", 'paths.data=a"b,c'):
        with pytest.raises(ExperimentError) as caught:
            check_overrides([given])
        [quoted] = shlex.split(str(caught.value).split("quote text for Hydra: ")[1].rstrip(")"))
        check_overrides([quoted])
        value = given.partition("=")[2]
        assert compose_config("experiment=smoke", "data=sample_en_de", quoted).paths.data == value
    check_overrides(["-m", "seed=1,2", "train.adam_betas=[0.9,0.98]", "+x=1", "~y", "hydra.z=null"])


def test_what_a_stage_shows_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from data_prep.system.surroundings import console_of
    from experiments import progress

    console = console_of()
    console.file, console._force_terminal = io.StringIO(), True
    monkeypatch.setattr(progress, "console", console)
    with StageView("train a[/b] :smile:", total=3) as view:
        view.advance(1, "[/x] [red]")
        view.note("[bold]kept[/] {task}")
    assert "train a[/b] :smile:: [bold]kept[/] {task}\n" in console.file.getvalue()
