"""Whether a checkpoint can be read to its end: before other files are removed, this is asked."""

import json
import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from gqa_fairseq.checkpoints.check import check, main


def state(**changes: Any) -> dict[str, Any]:
    """What fairseq puts into a checkpoint, small."""
    return {
        "args": None,
        "cfg": Namespace(seed=1),
        "model": {"weight": torch.ones(5, 3), "half": torch.zeros(7).bfloat16(),
                  "version": torch.tensor([3])},
        "criterion": None,
        "optimizer_history": [{"num_updates": 6}, {"num_updates": 12}],
        "task_state": {},
        "extra_state": {"train_iterator": {"epoch": 2}},
        "last_optimizer_state": {"state": {}},
    } | changes  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint_last.pt"


def test_a_good_checkpoint_says_its_updates_and_parameters(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(state(), path)
    assert check(path) == {"updates": 12, "parameters": 15 + 7 + 1}
    assert main([str(path)]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"updates": 12, "parameters": 23}
    assert printed.err == ""


def refused(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that says why."""
    assert main([str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_one_is_refused(
    path: Path, capsys: pytest.CaptureFixture[str], share: float
) -> None:
    torch.save(state(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    refused(path, capsys)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_no_numbers_are_refused(
    path: Path, capsys: pytest.CaptureFixture[str], number: float, dtype: torch.dtype
) -> None:
    weight = torch.ones(4, dtype=dtype)
    weight[2] = number
    torch.save(state(model={"fine": torch.ones(2), "decoder.weight": weight}), path)
    said = refused(path, capsys)
    assert f"{path}: decoder.weight has weights that are no finite numbers" in said


def test_what_is_no_checkpoint_of_fairseqs_is_refused(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "No such file" in refused(path, capsys)
    path.write_text("no checkpoint", encoding="utf-8")
    assert "it is no file of torch.save" in refused(path, capsys)
    path.write_bytes(b"")
    assert "it is empty or cut short" in refused(path, capsys)
    torch.save({"weight": torch.ones(2)}, path)
    assert "it has no 'model': these may be weights alone" in refused(path, capsys)
    assert "KeyError: 'model'" in refused(path, capsys)
    torch.save(state(optimizer_history=[]), path)
    assert "IndexError" in refused(path, capsys)
    assert "does not say how many updates it has had" in refused(path, capsys)
    torch.save(state(model={}), path)
    assert f"{path}: it has no weights" in refused(path, capsys)


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("it ran",)


def test_reading_one_runs_no_code(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(state(cfg=RunsCode()), path)
    refused(path, capsys)  # and prints nothing
    path.write_bytes(pickle.dumps(RunsCode(), protocol=2))
    refused(path, capsys)
