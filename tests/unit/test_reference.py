"""results/reference/: the papers' numbers, strictly read and shown as printed."""

import json
import re
from pathlib import Path

import pytest

from experiments.errors import ExperimentError
from experiments.report.papers.reference import REFERENCE_FOLDER, paper_tables, read_papers


def test_the_papers_numbers_are_as_printed() -> None:
    shazeer, ainslie = read_papers()
    assert (shazeer.arxiv, ainslie.arxiv) == ("1911.02150", "2305.13245")
    quality_table, speed_table = paper_tables(shazeer)
    assert " ".join(quality_table.rows[0]) == "multi-head 8 128 4096 1.424 26.7 27.7 28.4"
    assert " ".join(quality_table.rows[1]) == "multi-query 8 128 5440 1.439 26.5 27.5 28.5"
    assert quality_table.rows[5][4] == "1.480"
    assert quality_table.rows[4][-2:] == ["–", "–"]
    assert " ".join(speed_table.rows[0]) == "multi-head 13.2 1.7 46 2.0 203"
    (gqa,) = paper_tables(ainslie)
    assert " ".join(gqa.rows[3]) == "GQA-8-XXL 0.28 47.1 43.5 45.4 47.7 36.3 47.2 28.4 81.6"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("tables", 0, "rows", 0), ["multi-head"], "has 1 cells for 8 columns"),
        (("arxiv",), 1911, "arxiv: Expected `str`, got `int`"),
        (("surprise",), 1, "unknown field `surprise`"),
    ],
)
def test_reference_numbers_are_read_strictly(
    tmp_path: Path, path: tuple[str | int, ...], value: object, message: str
) -> None:
    whole = json.loads((REFERENCE_FOLDER / "shazeer2019.json").read_text(encoding="utf-8"))
    part = whole
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    (tmp_path / "paper.json").write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(ExperimentError, match=re.escape(message)):
        read_papers(tmp_path)


def test_no_reference_numbers_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="no reference numbers"):
        read_papers(tmp_path)
