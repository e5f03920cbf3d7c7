"""What surrounds the jobs of one command: Hydra calls `SweepCallback` before and after them.

Before: all jobs are composed, checked and shown, so that a bad value in the last one is found
before the first one works. After: what was trained is measured side by side, and reported. The
jobs themselves are Hydra's, wherever its launcher runs them.
"""

import os
import re
import shlex
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import MissingConfigException, compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config import SuiteConfig, parse_config, setting_names
from experiments.errors import CompositionError, ExperimentError
from experiments.metrics import METRICS
from experiments.progress import console
from experiments.records import provenance
from experiments.records.measurement import MEASUREMENT_NAME
from experiments.records.storage import read_json
from experiments.stages.corpus import prepare_data
from experiments.stages.describe import print_plan
from experiments.stages.folders import JobFolder, Outcome
from experiments.stages.graph import Job, Stage, ancestors, measurements_of, plan
from experiments.stages.live import log_sweep, tracking_folder
from experiments.stages.measuring import measure
from experiments.stages.runner import forget
from experiments.tracking.runs import check_account, how_to_sync

CONFIG_NAME = "suite"


class SweepCallback(Callback):
    """Hydra drops errors of callbacks, so each ends the process itself, with its exit code."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        _ending(lambda: self._start([compose_one(config)]))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _ending(lambda: self._start(compose_sweep(config)))

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        _ending(lambda: finish(self.jobs, is_sweep=False))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        _ending(lambda: finish(self.jobs, is_sweep=True))

    def _start(self, configs: list[SuiteConfig]) -> None:
        self.jobs = start(configs)


def _ending(action: Any) -> None:
    """Run `action`; end the process where it raises, with one line unless it is a fault of ours."""
    try:
        action()
    except HydraException as error:
        print(f"error: {in_one_line(error)}", file=sys.stderr)
        sys.exit(1)
    except (ExperimentError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception:  # a fault of ours: Hydra would only warn, and go on
        traceback.print_exc()
        sys.exit(1)


def check_overrides(arguments: Sequence[str]) -> None:
    """Raise ExperimentError, one line, for an override that Hydra cannot read or would divide."""
    is_sweep = bool({"-m", "--multirun"} & set(arguments))
    parser = OverridesParser.create()
    for given in arguments:
        key, equals, value = given.partition("=")
        if not equals or given.startswith("-"):
            continue
        quoted = value.replace('"', '\\"')
        advice = "quote text for Hydra: " + shlex.quote(f'{key}="{quoted}"')
        try:
            override = parser.parse_override(given)
        except HydraException as error:
            raise ExperimentError(f"{given}: {str(error).splitlines()[0]} ({advice})") from error
        if override.is_sweep_override() and not is_sweep:
            raise ExperimentError(
                f"{given}: a comma divides the values of a sweep, which is asked for with -m; "
                f"{advice}"
            )


def with_search_options(arguments: Sequence[str]) -> list[str]:
    """The same arguments, in which Hydra adds options of the search to those that are there.

    No file of conf/ names them all, and Hydra sets what is not there only by `++`.
    """
    added = "decode.options"
    return [f"++{given}" if given.startswith(added) else given for given in arguments]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Hydra's errors, which are a page, as CompositionError; HYDRA_FULL_ERROR=1 keeps the page."""
    name = "HYDRA_FULL_ERROR"
    wants_page = name in os.environ
    os.environ.setdefault(name, "1")  # without it Hydra prints its page and ends the process
    try:
        yield
    except HydraException as error:
        if wants_page:
            raise
        raise CompositionError(in_one_line(error)) from error
    finally:
        if not wants_page:
            del os.environ[name]


def in_one_line(error: HydraException) -> str:
    """What Hydra could not compose, and what there is instead."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={name}: not in conf/{group} (choose one of {', '.join(error.options)})"
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown is None:
        return text.split("\n")[0]
    key, settings = unknown[1], setting_names()
    if key in settings:
        section = key.split(".")[0]
        return f"{key}: this {section} has no such setting (choose another {section}=...)"
    close = get_close_matches(key, settings, n=1)
    advice = f"did you mean {close[0]}?" if close else "experiments/config.py has them all"
    return f"{key}: there is no such setting ({advice})"


def resolve(composed: DictConfig) -> SuiteConfig:
    """The checked config of a composed one; raises ExperimentError, one line."""
    try:
        resolved: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        problem = str(error).split("\n")[0]
        raise ExperimentError(f"config: {problem} (set {error.full_key}=...)") from error
    for section in ("paths", "data"):  # a shell leaves a quoted ~ to the program
        for name, value in resolved.get(section, {}).items():
            if isinstance(value, str) and value.startswith("~/"):
                resolved[section][name] = str(Path(value).expanduser())
    return parse_config(resolved)


def compose_one(config: DictConfig) -> SuiteConfig:
    """The job of a command without -m, whose config has Hydra's own node beside the rest."""
    return resolve(_without_hydra(config))


def compose_sweep(config: DictConfig) -> list[SuiteConfig]:
    """The jobs of a command with -m, as Hydra's basic sweeper will make them."""
    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    params = config.hydra.sweeper.get("params") or {}
    asked = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    batches = BasicSweeper.split_arguments(parser.parse_overrides(asked), None)
    return [
        resolve(compose(CONFIG_NAME, overrides=list(overrides)))
        for batch in batches
        for overrides in batch
    ]


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def start(configs: list[SuiteConfig]) -> list[Job]:
    """Check and show all jobs; ends the process where only the plan was asked for."""
    if not configs:
        raise ExperimentError("the sweep has no job (a list on the command line is empty)")
    jobs, stages = plan(configs)
    if any(config.dry_run for config in configs):
        print_plan(jobs, stages)
        sys.exit(0)
    check_surroundings(configs)
    for job in jobs:
        if job.config.rerun == "prepare":
            prepare_data(job.config, job.prepare, again=True)
        JobFolder(job.folder).outcome_path.unlink(missing_ok=True)
    # Of several machines the first one is in charge. data_prep does its own stage again by itself.
    rerun = None if configs[0].hardware.node_rank else configs[0].rerun
    for stage in stages if rerun else ():
        depends = rerun in (stage.name, *(parent.name for parent in ancestors(stage)))
        if depends and stage.name != "prepare":
            forget(stage)
    for job in jobs:
        if rerun in [stage.name for stage in job.stages]:
            JobFolder(job.folder).record_path.unlink(missing_ok=True)
    for job in jobs if not configs[0].hardware.node_rank else ():
        # Before the first one works: `experiments.status` then knows all that is left.
        job_folder = JobFolder(job.folder)
        if not job_folder.record_path.exists() or job_folder.has_damaged_links():
            job_folder.write_links(job.config, {s.name: s.folder for s in job.stages})
    return jobs


def check_surroundings(configs: Sequence[SuiteConfig]) -> None:
    """Raise ExperimentError, one line, where this machine lacks what a job needs in the end.

    That is an account of wandb, GPUs, and what the scores of its target language are made with.
    """
    for config in configs:
        check_account(config.tracking.mode)
        check_gpus(config)
        for metric in METRICS.values():
            metric.scorer(config.data.target_lang)


def finish(jobs: Sequence[Job], *, is_sweep: bool) -> None:
    """Measure the jobs that have a model, report, and end the process where a job failed."""
    outcomes = {job.folder: read_outcome(job) for job in jobs}
    first_machine = [job for job in jobs if not job.config.hardware.node_rank]
    trained = [job for job in first_machine if outcomes[job.folder].has_model]
    failed = sum(outcome.status == "failed" for outcome in outcomes.values())
    for stage, group in measurements_of(trained):
        try:
            _measure(stage, group)
        except ExperimentError as error:
            console.print(f"error: {error}")
            failed += 1
    if is_sweep and trained:
        failed += _report(trained)
    log_sweep(trained)
    offline = [job.config for job in first_machine if job.config.tracking.mode == "offline"]
    for directory in dict.fromkeys(map(tracking_folder, offline)):
        console.print(how_to_sync(directory))
    if failed:
        sys.exit(2)


def _measure(stage: Stage, jobs: list[Job]) -> None:
    measure(stage, jobs)
    console.print(f"speed: {stage.folder / MEASUREMENT_NAME}")


def _report(jobs: Sequence[Job]) -> int:
    """Test and report each experiment; returns how many commands failed."""
    wanted = dict.fromkeys(
        (
            str(Path(job.config.paths.runs) / job.config.experiment_name),
            str(Path(job.config.paths.measurements) / job.config.experiment_name),
            str(Path(job.config.paths.runs).parent / "tests"),
            job.config.paths.data,
            job.config.paths.report,
        )
        for job in jobs
    )
    failed = 0
    for records, measurements, tests, data, out in wanted:
        failed += _fails("experiments.significance", "--records", records, "--out", tests)
        report = ["experiments.report", "--records", records, "--measurements", measurements]
        if Path(tests).is_dir():  # there may have been nothing to test
            report += ["--tests", tests]
        failed += _fails(*report, "--data", data, "--out", out)
    return failed


def _fails(*command: str) -> bool:
    return subprocess.run([sys.executable, "-m", *command], check=False).returncode != 0


def read_outcome(job: Job) -> Outcome:
    """How a job ended, by its folder."""
    path = JobFolder(job.folder).outcome_path
    if not path.exists():
        return Outcome(job=job.name, status="failed", message="it left no outcome")
    return read_json(path, Outcome)


def check_gpus(config: SuiteConfig) -> None:
    """Raise ExperimentError when the machine lacks the GPUs: fairseq would fall back to the CPU."""
    wanted = config.hardware.devices if config.hardware.device == "cuda" else 0
    found = len(provenance.hardware().gpus)
    if wanted and found < wanted:
        raise ExperimentError(
            f"hardware.devices={wanted} GPUs are wanted, nvidia-smi shows {found} "
            "(use hardware=cpu)"
        )
