"""Checked configs for tests, and changes of them."""

from pathlib import Path
from typing import Any

import msgspec
from hydra import compose, initialize_config_dir

from experiments.config import SuiteConfig, parse_config
from experiments.stages.sweep import resolve

ROOT = Path(__file__).resolve().parents[1]


def compose_config(*overrides: str) -> SuiteConfig:
    """The job of these overrides of conf/suite.yaml."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(compose("suite", overrides=list(overrides)))


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
