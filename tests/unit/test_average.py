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


def test_what_is_no_checkpoint_is_refused_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = save(tmp_path / "good.pt", weight=torch.zeros(2))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "bare.pt")
    torch.save(torch.zeros(2), tmp_path / "tensor.pt")
    torch.save({"model": {"weight": "words"}}, tmp_path / "words.pt")
    torch.save({"model": torch.zeros(2)}, tmp_path / "unnamed.pt")
    (tmp_path / "text.pt").write_text("no checkpoint\n", encoding="utf-8")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "short.pt").write_bytes(good.read_bytes()[:500])
    (tmp_path / "folder.pt").mkdir()
    reasons = {
        "bare": "it has no 'model': these may be weights alone",
        "tensor": "",
        "words": "not all of its weights are tensors",
        "unnamed": "",
        "text": "it is no file of torch.save",
        "empty": "it is empty or cut short",
        "short": "",
        "folder": "Is a directory",
        "absent": "No such file",
    }
    for name, reason in reasons.items():
        path = tmp_path / f"{name}.pt"
        assert main([str(tmp_path / "mean.pt"), str(good), str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert str(path) in line
        assert reason in line
        assert not (tmp_path / "mean.pt").exists()


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = save(tmp_path / "good.pt", weight=torch.zeros(2))

    def fill(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("no space left")

    monkeypatch.setattr(torch, "save", fill)
    assert main([str(tmp_path / "mean.pt"), str(good)]) == 2
    assert capsys.readouterr().err == "error: no space left\n"
    assert list(tmp_path.iterdir()) == [good]
