"""The mean of checkpoints: exact, loadable, refused where weights do not match."""

from pathlib import Path

import pytest
import torch

from gqa_fairseq.checkpoints.average import main


def save(path: Path, **weights: torch.Tensor) -> Path:
    state = {"model": weights, "cfg": {"name": path.stem}, "last_optimizer_state": {"step": 1}}
    torch.save(state, path)
    return path


def test_the_mean_is_exact_and_keeps_the_rest_of_the_last_one(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randn(5, 3, generator=generator) for _ in range(3)]
    version = torch.tensor([3.0])
    paths = [
        save(tmp_path / f"{i}.pt", weight=weight, version=version, half=weight.bfloat16())
        for i, weight in enumerate(drawn)
    ]
    out = tmp_path / "mean.pt"
    assert main([str(out), *map(str, paths)]) == 0
    state = torch.load(out, weights_only=True)
    assert state["cfg"] == {"name": "2"}
    assert state["last_optimizer_state"] is None
    expected = torch.stack(drawn).double().mean(0).float()
    torch.testing.assert_close(state["model"]["weight"], expected, rtol=0, atol=1e-7)
    assert torch.equal(state["model"]["version"], version)
    assert state["model"]["half"].dtype == torch.bfloat16
    assert {path.name for path in tmp_path.iterdir()} == {"0.pt", "1.pt", "2.pt", "mean.pt"}


def test_other_weights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = save(tmp_path / "one.pt", weight=torch.zeros(2))
    two = save(tmp_path / "two.pt", weight=torch.zeros(3))
    assert main([str(tmp_path / "mean.pt"), str(one), str(two)]) == 2
    assert capsys.readouterr().err == f"error: {two} has other weights than {one}\n"
    assert not (tmp_path / "mean.pt").exists()
