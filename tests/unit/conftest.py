"""What tests of the report and of a card's questions begin with."""

import shutil
from pathlib import Path

import pytest

from experiments.card.models import Asked

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with a copy of the committed results."""
    shutil.copytree(ROOT / "results", tmp_path / "results")
    return tmp_path


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a report's time is drawing, and these tests look at none of it."""
    monkeypatch.setattr("experiments.report.pictures.plots.group_pictures", lambda _: {})
    monkeypatch.setattr("experiments.report.document.group_exhibits", lambda _: [])


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    """The questions of a card, in a dry run."""
    return Asked("cpu", tmp_path / "records", 100.0, 1)
