"""Checked configs for tests, and changes of them."""

from pathlib import Path
from typing import Any

import msgspec
from data_prep_corpus import local_files
from hydra import compose, initialize_config_dir

from experiments.config import SuiteConfig, parse_config
from experiments.stages.sweep import resolve, with_search_options

ROOT = Path(__file__).resolve().parents[1]


def compose_config(*overrides: str) -> SuiteConfig:
    """The job of these overrides of conf/suite.yaml."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(compose("suite", overrides=with_search_options(overrides)))


def smoke_config(folder: Path, *overrides: str) -> SuiteConfig:
    """A job of the smoke experiment, with real text and room for its data below `folder`."""
    files = local_files(folder / "text")
    start = ["experiment=smoke", "hardware.threads=1"]
    return compose_config(*start, *overrides, *files, f"paths.data={folder}/data")


def changed(config: SuiteConfig, values: dict[str, Any]) -> SuiteConfig:
    """`config` with other values by dotted key, checked again."""
    raw = msgspec.to_builtins(config)
    for name, value in values.items():
        *sections, key = name.split(".")
        target = raw
        for section in sections:
            target = target[section]
        target[key] = value
    return parse_config(raw)
