"""What a sweep consists of: stages, what each depends on, and where its result is kept.

    prepare -> train -> evaluate                        a job: one architecture, one seed
                  \\
                   +-> convert -> uptrain -> evaluate    one that is trained on with fewer heads
                  \\                 \\
                   +-----------------+-> measure        speed: all architectures side by side

A stage is identified by its key: the hash of its name, its recipe, its inputs and its parents'
keys, and of nothing else. Two jobs that need the same stage share it. The code that made a result
is recorded, and never a reason to make it again; for that a developer raises the recipe.
"""

import functools
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import msgspec

from data_prep.corpora.registry import RECIPE as PREPARE_RECIPE
from data_prep.corpora.registry import request
from data_prep.spec import DataError
from experiments.config import SuiteConfig
from experiments.errors import ExperimentError
from experiments.records.parts import Conversion, uptraining_label
from experiments.stages.uptraining.parent import ParentFile, read_parent
from gqa_fairseq.architecture import Architecture, distinct_names

StageName = Literal["prepare", "train", "convert", "uptrain", "evaluate", "measure"]

# Raise a number when the same inputs should give another result than before, with the reason
# beside it: then every such stage, and what depends on it, is made again. A test holds a run of
# each stage to what it gave (tests/integration/test_smoke.py). The data has a recipe of its own.
RECIPES: dict[StageName, int] = {
    "prepare": PREPARE_RECIPE,
    "train": 1,
    "convert": 1,
    "uptrain": 1,
    "evaluate": 1,
    "measure": 1,
}

# Which stages each key of the config feeds; the longest name that fits a key counts. What a stage
# depends on through its parents is not repeated here.
FEEDS: dict[str, tuple[StageName, ...]] = {
    "data": ("prepare",),
    "data.mirror": (),  # where the text comes from, not what it is: checksums decide that
    "attention": ("train", "convert"),  # these two as the architecture that they come to
    "model": ("train", "convert"),
    "train": ("train",),
    "uptrain.method": ("convert",),
    "uptrain.parent": ("convert",),  # a file as its content
    "uptrain.points": ("uptrain",),
    "uptrain.alpha": ("evaluate",),  # which of the points
    "seed": ("train", "convert"),  # of a conversion: where it draws
    "decode": ("evaluate",),
    "decode.beam": ("evaluate", "measure"),
    "decode.engine": ("evaluate", "measure"),
    "measure": ("measure",),
    "hardware.device": ("measure",),
    "hardware.devices": ("train", "uptrain"),
    "hardware.nodes": ("train",),
    "hardware.precision": ("train", "uptrain", "measure"),
    "hardware.max_tokens_per_device": ("train",),
    # Sums differ in their last digits by threads and machine. They are recorded, not identity.
    "hardware.threads": (),
    "hardware.node_rank": (),
    "hardware.master": (),
    "tracking": (),
    "experiment_name": (),
    "rerun": (),
    "dry_run": (),
    "paths": (),
}


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a sweep. `label` is for people: it is not part of the key.

    `folder` is where its one result is kept.
    """

    name: StageName
    inputs: dict[str, Any]
    parents: tuple["Stage", ...]
    label: str
    folder_of_kind: Path

    @property
    def recipe(self) -> int:
        return RECIPES[self.name]

    @property
    def key(self) -> str:
        """Hexadecimal sha256."""
        return _key(self)

    @property
    def folder(self) -> Path:
        """Such as `outputs/stages/train/mqa-seed1-0123456789ab`."""
        return self.folder_of_kind / f"{self.label}-{self.key[:12]}"

    @property
    def title(self) -> str:
        """Such as `train mqa-seed1-0123456789ab`."""
        return f"{self.name} {self.folder.name}"

    def parent(self, name: StageName) -> "Stage":
        """The one parent of that name, or a parent's."""
        found = {s.key: s for s in ancestors(self) if s.name == name}
        [stage] = found.values()
        return stage


def _key(stage: Stage) -> str:
    parents = sorted({parent.key for parent in stage.parents})
    content = [stage.name, stage.recipe, stage.inputs, parents]
    return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One architecture and one seed: a config and its stages. Its id is its last stage's key.

    `parent` is the checkpoint that is trained on, where no job of the suite trained it.
    """

    config: SuiteConfig
    architecture: Architecture
    stages: tuple[Stage, ...]
    parent: ParentFile | None = None

    @property
    def id(self) -> str:
        return self.evaluate.key

    def stage(self, name: StageName) -> Stage | None:
        """The stage of that name, None where the job has none."""
        return next((stage for stage in self.stages if stage.name == name), None)

    def _stage(self, name: StageName) -> Stage:
        found = self.stage(name)
        assert found is not None, f"{self.config.experiment_name} has no {name}"
        return found

    @property
    def prepare(self) -> Stage:
        return self._stage("prepare")

    @property
    def train(self) -> Stage:
        """Of an uptrained model this is its parent's; there is none where that is a file."""
        return self._stage("train")

    @property
    def evaluate(self) -> Stage:
        return self._stage("evaluate")

    @property
    def model(self) -> Stage:
        """The stage that has the model which is evaluated."""
        return self.evaluate.parents[0]

    @property
    def method(self) -> Conversion | None:
        """What is done to a parent's heads, None for a model from scratch."""
        return method_of(self.config, self.architecture, self.parent)

    @property
    def parent_updates(self) -> int:
        """Updates of the model that is trained on."""
        return self.parent.updates if self.parent else self.config.train.max_updates

    @property
    def name(self) -> str:
        """Such as `mqa-seed1-0123456789ab`: its folder, its lines on the screen, its wandb run."""
        return self.evaluate.folder.name

    @property
    def folder(self) -> Path:
        """Such as `outputs/runs/quickstart/mqa-seed1-0123456789ab`."""
        return Path(self.config.paths.runs) / self.config.experiment_name / self.name


def job_of(config: SuiteConfig) -> Job:
    """The job of a config.

    Raises ExperimentError when its text, a folder or the checkpoint to start from cannot be used.
    """
    paths = config.paths
    for name in paths.__struct_fields__:
        _check_folder(name, getattr(paths, name))
    prepare = Stage(
        name="prepare",
        inputs={"request": _request(config.data)},
        parents=(),
        label=config.data.name,
        folder_of_kind=Path(paths.data),
    )
    parent = read_parent(config) if config.uptrain.parent is not None else None
    architecture = parent.converted(config) if parent else config.architecture
    stages = [prepare]
    names: tuple[StageName, ...] = ("train", "evaluate")
    if config.uptrain.method:
        names = ("convert", *(("uptrain",) if config.uptrain.alpha else ()), "evaluate")
        if parent is None:
            multi_head = config.multi_head
            stages.append(_stage("train", multi_head, multi_head.architecture, prepare))
    for name in names:
        stages.append(_stage(name, config, architecture, stages[-1], parent))
    return Job(config=config, architecture=architecture, stages=tuple(stages), parent=parent)


def _stage(
    name: StageName,
    config: SuiteConfig,
    architecture: Architecture,
    after: Stage,
    parent: ParentFile | None = None,
) -> Stage:
    """A stage of one job, whose label says what is special about its result."""
    method = method_of(config, architecture, parent)
    how = ""
    if method:
        alone = name in ("convert", "uptrain")
        how = "-" + (method if alone else uptraining_label(method, config.uptrain.alpha))
    return Stage(
        name=name,
        inputs=inputs_of(name, config, architecture, parent),
        parents=(after,),
        label=f"{architecture.name}{how}-seed{config.seed}",
        folder_of_kind=Path(config.paths.stages) / name,
    )


def method_of(
    config: SuiteConfig, architecture: Architecture, parent: ParentFile | None
) -> Conversion | None:
    """What is done to a parent's heads, None for a model from scratch.

    Where no heads are merged all methods are the same.
    """
    before = parent.architecture if parent else config.multi_head.architecture
    same = (before.encoder_heads, before.decoder_heads) == (
        architecture.encoder_heads,
        architecture.decoder_heads,
    )
    return "identity" if config.uptrain.method and same else config.uptrain.method


def _check_folder(name: str, folder: str) -> None:
    """Raise ExperimentError for a folder whose name somebody on the way cannot take.

    fairseq divides the path of its data at every colon. Results are JSON, and messages are lines.
    """
    path = str(Path(folder).resolve())
    shown = path.encode("unicode_escape").decode() if not path.isprintable() else path
    if name == "data" and os.pathsep in path:
        raise ExperimentError(
            f"paths.{name}: fairseq divides {shown} at {os.pathsep!r} (give a folder without it)"
        )
    if name in ("data", "stages") and "${" in path:
        raise ExperimentError(
            f"paths.{name}: fairseq reads ${{ in {shown} as the name of a setting (give a folder "
            "without it)"
        )
    if any(ord(each) < 32 or 0xD800 <= ord(each) < 0xE000 for each in path):
        raise ExperimentError(
            f"paths.{name}: {shown} has characters that no text holds (give another folder)"
        )


def measurements_of(jobs: Sequence[Job]) -> list[tuple[Stage, list[Job]]]:
    """The measurements of a sweep with their jobs: those that are measured alike, side by side.

    Jobs of several experiments, with vocabularies of several sizes or measured in several ways give
    a measurement each. Several multi-head baselines stand side by side: a smaller model is another
    way to be faster.
    """
    groups: dict[bytes, list[Job]] = {}
    for job in jobs:
        config = job.config
        where = (config.experiment_name, config.paths.measurements)
        alike = (where, job.architecture.vocab_size, inputs_of("measure", config))
        groups.setdefault(msgspec.json.encode(alike, order="deterministic"), []).append(job)
    return [(_measurement(group), group) for group in groups.values()]


def _measurement(jobs: Sequence[Job]) -> Stage:
    first = jobs[0].config
    names = distinct_names(job.architecture for job in jobs)
    return Stage(
        name="measure",
        inputs=inputs_of("measure", first),
        parents=tuple(job.model for job in jobs),
        label="-".join(names.values()),
        folder_of_kind=Path(first.paths.measurements) / first.experiment_name,
    )


def plan(configs: Iterable[SuiteConfig]) -> tuple[list[Job], list[Stage]]:
    """The jobs, each once, and all stages of a sweep, each once and after its parents.

    Jobs of several experiments may share all their stages, and have a folder each.

    Raises ExperimentError when a job's text cannot be used.
    """
    jobs = list({job.folder: job for job in map(job_of, configs)}.values())
    measurements = [stage for stage, _ in measurements_of(jobs)]
    found: dict[Path, Stage] = {}
    for stage in [s for job in jobs for s in job.stages] + measurements:
        found.setdefault(stage.folder, stage)
    return jobs, list(found.values())


def ancestors(stage: Stage) -> list[Stage]:
    """The stage's parents, their parents, and so on."""
    return [s for parent in stage.parents for s in (parent, *ancestors(parent))]


def inputs_of(
    name: StageName,
    config: SuiteConfig,
    architecture: Architecture | None = None,
    parent: ParentFile | None = None,
) -> dict[str, Any]:
    """The part of the config that feeds a stage, by FEEDS.

    `architecture` is that of the stage's model, the config's own where it is not given. `parent` is
    the file that is converted.
    """
    values = {
        key: value for key, value in flat_config(config).items() if name in FEEDS[feeding_name(key)]
    }
    if name in ("train", "convert"):
        # Two configs that come to the same architecture are the same training.
        values = {k: v for k, v in values.items() if k.split(".")[0] not in ("attention", "model")}
        architecture = architecture or config.architecture
        values["architecture"] = identity_of(architecture)
        if name == "convert":
            values["uptrain.method"] = method = method_of(config, architecture, parent)
            values["uptrain.parent"] = parent and parent.sha256
            if method != "random":
                del values["seed"]
    if values.get("train.implementation") == "fairseq":  # as all was: their keys are older
        del values["train.implementation"]
    if name == "evaluate" and config.uptrain.method is None:
        del values["uptrain.alpha"]
    return values


def identity_of(architecture: Architecture) -> dict[str, Any]:
    """The numbers of an architecture, without what is named or derived."""
    numbers = asdict(architecture)
    del numbers["name"], numbers["residual"]
    if architecture.embeddings == 1:  # as in all models of this suite: their keys are older
        del numbers["embeddings"]
    return numbers


def flat_config(config: SuiteConfig) -> dict[str, Any]:
    """Values by dotted key; a section that a variant of the schema nests is flattened too."""
    flat: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = value

    add("", msgspec.to_builtins(config))
    return flat


def feeding_name(key: str) -> str:
    """The name of FEEDS that decides about a dotted key."""
    names = [name for name in FEEDS if key == name or key.startswith(f"{name}.")]
    if not names:
        raise AssertionError(f"FEEDS does not say what {key} feeds")
    return max(names, key=len)


@functools.cache
def _request(data: Any) -> str:
    """The identity of the data; files are read once a process, however many jobs use them."""
    try:
        return request(data)
    except DataError as error:
        message = error.spelled(lambda setting: f"data.{setting}")
        raise ExperimentError(f"data: {message}") from error
