"""A checkpoint that is trained on and that no job of this config trained: what it says of itself.

fairseq keeps a training's options in its checkpoints: they are the recipe that goes on. A process
of its own reads them, as this one imports neither torch nor fairseq.
"""

import functools
import hashlib
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec

from experiments.config import SuiteConfig
from experiments.environment import compute_environment
from experiments.errors import ExperimentError
from experiments.stages.folders import DataFolder, JobFolder
from experiments.stages.training.command import (
    PLUGIN,
    machine_flags,
    saving_options,
    with_options,
)
from gqa_fairseq.architecture import Architecture, Placement, Variant
from gqa_fairseq.parity import regrouped


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What `python -m gqa_fairseq.checkpoints.recipe` says of a checkpoint.

    `options` are fairseq-train's, without those of the model (`model`, by the plugin's names), of
    the machine and of what is saved. An update was made of `batches_per_update` batches, over all
    devices. `data` is where the corpus lay; null languages were never said, and it is gone.
    """

    updates: int
    source_lang: str | None
    target_lang: str | None
    data: str
    seed: int
    batches_per_update: int
    options: list[str]
    model: dict[str, Any]
    architecture: Architecture
    source_words: int
    target_words: int


class ParentFile(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint, the sha256 of its file, and its recipe."""

    path: Path
    sha256: str
    recipe: Recipe

    @property
    def updates(self) -> int:
        return self.recipe.updates

    @property
    def architecture(self) -> Architecture:
        return self.recipe.architecture

    @property
    def max_positions(self) -> int:
        """Tokens of the longest line that the model takes, on either side."""
        model = self.recipe.model
        return min(model["max_source_positions"], model["max_target_positions"])

    def converted(self, config: SuiteConfig) -> Architecture:
        """The architecture that the config's variant makes of it.

        Raises ExperimentError when it makes none.
        """
        attention, parent = config.attention, self.architecture
        kept = [f.name for f in fields(Variant) if f.default is None and f.name != "num_kv_heads"]
        other = [name for name in kept if getattr(attention, name) is not None]
        if other:
            raise ExperimentError(
                f"attention.{other[0]}={getattr(attention, other[0])}: a converted model keeps its "
                "parent's (leave it out)"
            )
        try:
            return converted(parent, attention.num_kv_heads, attention.placement)
        except ValueError as error:
            raise ExperimentError(f"uptrain.parent={self.path}: attention.{error}") from error

    def train_command(
        self, config: SuiteConfig, architecture: Architecture, binarized: Path, checkpoints: Path
    ) -> list[str]:
        """The fairseq-train command of the recipe for another architecture, on our hardware."""
        recipe = self.recipe
        model = recipe.model | {
            "num_kv_heads": architecture.num_kv_heads,
            "attention_placement": architecture.placement,
        }
        command = ["fairseq-train", str(binarized), "--user-dir", os.path.relpath(PLUGIN)]
        data = config.data
        command += ["--source-lang", data.source_lang, "--target-lang", data.target_lang]
        command += [*recipe.options, "--arch", "gqa_transformer"]
        for name, value in model.items():
            option = f"--{name.replace('_', '-')}"
            if value is True:
                command.append(option)
            elif value is not False and value is not None:
                command += [option, str(value)]
        ours = {
            "--update-freq": recipe.batches_per_update // config.world_size,
            "--distributed-world-size": config.world_size,
            **saving_options(config, checkpoints),
        }
        return [*with_options(command, ours), *machine_flags(config.hardware)]

    def check(self, config: SuiteConfig) -> None:
        """Raise ExperimentError, one line, where the config asks for what the recipe is not."""
        recipe, data = self.recipe, config.data
        try:
            config.uptrain.updates(recipe.updates)
        except ValueError as error:
            raise ExperimentError(f"uptrain.parent={self.path}: {error}") from error
        words = data.vocab_size + 1  # fairseq's dictionary has one symbol more
        for holds, problem in (
            (
                recipe.source_lang in (None, data.source_lang)
                and recipe.target_lang in (None, data.target_lang),
                f"translates {recipe.source_lang} to {recipe.target_lang}, not data.source_lang="
                f"{data.source_lang} to data.target_lang={data.target_lang}",
            ),
            (
                (recipe.source_words, recipe.target_words) == (words, words),
                f"has dictionaries of {recipe.source_words:,} and {recipe.target_words:,} words, "
                f"not the {words:,} of data.vocab_size={data.vocab_size}",
            ),
            (
                data.max_pieces < self.max_positions,
                f"has {self.max_positions} positions, too few for data.max_pieces="
                f"{data.max_pieces} and the end of the sentence",
            ),
            (
                recipe.seed == config.seed,
                f"was trained with seed {recipe.seed}, whose order of the data goes on "
                f"(set seed={recipe.seed})",
            ),
            (
                recipe.batches_per_update % config.world_size == 0,
                f"makes an update of {recipe.batches_per_update} batches, which hardware.devices="
                f"{config.world_size} does not divide",
            ),
        ):
            if not holds:
                raise ExperimentError(f"uptrain.parent={self.path} {problem}")

    def check_dictionaries(self, data: DataFolder) -> str | None:
        """Raise ExperimentError unless the data's words are the model's, in the same order.

        A checkpoint has no words. They lie beside it, or where its corpus lay; where they are
        gone, returns a line that says so.
        """
        corpora = [Path(part) for part in self.recipe.data.split(os.pathsep)]
        folders = [self.path.parent, self.path.parent.parent, *corpora]
        for language in (data.source_lang, data.target_lang):
            name = f"dict.{language}.txt"
            own = next((f / name for f in folders if (f / name).is_file()), None)
            if own is None:
                return (
                    f"{name} is neither beside {self.path} nor in {self.recipe.data}: that its "
                    "words are those of the data cannot be checked"
                )
            if _words(own) != _words(data.binarized / name):
                raise ExperimentError(
                    f"{data.binarized / name}: these are not the words of uptrain.parent, which "
                    f"are in {own} (prepare the data with the parent's vocabulary)"
                )
        return None


def converted(parent: Architecture, num_kv_heads: int, placement: Placement) -> Architecture:
    """A parent with `num_kv_heads` in all attentions, or in the decoder's; all else is kept.

    Raises ValueError, one line, where its heads cannot become so few.
    """
    sides = ("decoder_heads", "encoder_heads")
    before = {side: getattr(parent, side) for side in sides}
    whole = {side: replace(heads, num_kv_heads=heads.num_heads) for side, heads in before.items()}
    kept = regrouped(replace(parent, **whole), num_kv_heads, placement, "kept")
    for side, heads in before.items():
        wanted = getattr(kept, side).num_kv_heads
        if heads.num_kv_heads % wanted:
            raise ValueError(
                f"num_kv_heads {wanted} does not divide the {heads.num_kv_heads} key/value heads "
                f"that the {side.removesuffix('_heads')} has"
            )
    if kept.decoder_heads.is_multi_head:
        return kept
    return replace(kept, name=f"{kept.name}-ff{kept.decoder_d_ff}")


def read_parent(config: SuiteConfig) -> ParentFile:
    """The checkpoint that a config names, or that of the job whose folder it names.

    Raises ExperimentError, one line, when it cannot be read or is not what the config asks for.
    """
    assert config.uptrain.parent is not None
    given = Path(config.uptrain.parent)
    try:
        path = JobFolder(given).checkpoint() if given.is_dir() else given
    except ExperimentError as error:
        raise ExperimentError(f"uptrain.parent: {error}") from error
    if not path.is_file():
        raise ExperimentError(f"uptrain.parent={given}: no such checkpoint")
    parent = _read(path.resolve(), path.stat().st_mtime_ns)
    parent.check(config)
    return parent


@functools.cache
def _read(path: Path, modified_ns: int) -> ParentFile:
    """Read a file once a process, however many jobs start from it."""
    try:
        recipe = read_recipe(path)
    except ExperimentError as error:
        raise ExperimentError(f"uptrain.parent: {error}") from error
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return ParentFile(path=path, sha256=digest, recipe=recipe)


def read_recipe(path: Path) -> Recipe:
    """What a checkpoint says of itself; raises ExperimentError, one line, when it says nothing."""
    command = [sys.executable, "-m", "gqa_fairseq.checkpoints.recipe", str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=compute_environment(1)
    )
    if done.returncode:
        raise ExperimentError(done.stderr.strip().split("\n")[-1].removeprefix("error: "))
    return msgspec.json.decode(done.stdout.strip().split("\n")[-1], type=Recipe)


def _words(dictionary: Path) -> list[str]:
    """The words of a fairseq dictionary, in its order; their counts do not matter."""
    lines = dictionary.read_bytes().split(b"\n")
    return [line.rpartition(b" ")[0].decode("utf-8", errors="replace") for line in lines if line]
