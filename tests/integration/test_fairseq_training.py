"""Training the plugin's models by fairseq's commands: resumed, by two processes, by Hydra."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fairseq_commands import Result, losses, make_corpus, start, succeed
from plugin_commands import LINES, PLUGIN, UPDATES, train, train_arguments, weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), LINES)


@pytest.mark.long
def test_training_goes_on_with_the_other_loss_and_optimizer(corpus: Path, tmp_path: Path) -> None:
    """From fairseq's loss and Adam to the plugin's and back, as if nothing had changed."""
    plugin = ["--criterion", "gqa_label_smoothed_cross_entropy", "--optimizer", "gqa_adam"]
    options = ["--dropout", 0, "--update-freq", 2, "--clip-norm", 1]
    for folder in ("whole", "mixed"):
        (tmp_path / folder).mkdir()
    whole = losses(train(corpus, tmp_path / "whole", 6, *options))
    found = {}
    for updates, own in ((2, []), (4, plugin), (6, [])):  # within an epoch
        result = train(corpus, tmp_path / "mixed", updates, *options, *own)
        assert result.status == 0, result.output[-4000:]
        found |= losses(result)
    assert list(found) == list(whole) == list(range(1, 7))
    # The log has three decimals.
    assert [float(x) for x in found.values()] == pytest.approx(
        [float(x) for x in whole.values()], abs=0.0015
    )
    one, two = (
        weights(tmp_path / folder / "checkpoints/checkpoint_last.pt")
        for folder in ("whole", "mixed")
    )
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-3)


HYDRA: dict[str, Any] = {
    "common": {"user_dir": str(PLUGIN), "cpu": True, "seed": 3},
    "criterion": {"_name": "cross_entropy"},
    "optimizer": {"_name": "adam"},
    "lr_scheduler": {"_name": "fixed"},
    "optimization": {"lr": [0.003], "max_update": 2},
    "dataset": {"max_tokens": 120, "num_workers": 0},
}


NAMED = {"_name": "mqa_transformer_small"}


OPTIONS = {
    "_name": "gqa_transformer",
    "num_kv_heads": 2,
    "attention_placement": "decoder",
    "encoder_embed_dim": 32,
    "decoder_embed_dim": 32,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "mha_ffn_embed_dim": 64,
    "share_all_embeddings": True,
}


@pytest.mark.parametrize(
    ("model", "encoder_kv", "decoder_kv", "encoder_d_ff"),
    [(NAMED, 24, 24, 768 + 7 * 36), (OPTIONS, 32, 16, 64)],
    ids=["named", "options"],
)
def test_hydra_train(
    model: dict[str, Any],
    encoder_kv: int,
    decoder_kv: int,
    encoder_d_ff: int,
    corpus: Path,
    tmp_path: Path,
) -> None:
    task = {"_name": "gqa_translation", "data": str(corpus)}
    places = {"save_dir": str(tmp_path / "checkpoints"), "no_epoch_checkpoints": True}
    config = HYDRA | {"model": model, "task": task, "checkpoint": places}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    succeed("hydra_train", "--config-dir", tmp_path, "--config-name", "job", folder=tmp_path)
    built = weights(tmp_path / "checkpoints/checkpoint_last.pt")
    assert built["encoder.layers.0.self_attn.k_proj.weight"].shape[0] == encoder_kv
    assert built["decoder.layers.0.self_attn.k_proj.weight"].shape[0] == decoder_kv
    assert built["decoder.layers.1.encoder_attn.v_proj.weight"].shape[0] == decoder_kv
    assert built["encoder.layers.0.fc1.weight"].shape[0] == encoder_d_ff


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train_on_two(corpus: Path, folder: Path, updates: int, *options: object) -> list[Result]:
    shared = [
        *("--distributed-no-spawn", "--distributed-world-size", 2),
        *("--distributed-init-method", f"tcp://127.0.0.1:{free_port()}"),
        *("--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"),
    ]
    running = [
        start(
            "train",
            *train_arguments(corpus, updates, *shared, *options, "--distributed-rank", rank),
            folder=folder,
            log=f"rank{rank}.txt",
        )
        for rank in (0, 1)
    ]
    results = [each.wait() for each in running]
    assert [r.status for r in results] == [0, 0], results[0].output[-3000:]
    return results


def test_two_processes_train_and_resume(corpus: Path, tmp_path: Path) -> None:
    """The resume broadcasts the whole checkpoint as an object: what the allowlist is long for."""
    first = train_on_two(corpus, tmp_path, 2)[0]
    second = train_on_two(corpus, tmp_path, 4)[0]
    assert list(losses(first)) == [1, 2]
    assert list(losses(second)) == [3, 4]


def test_an_update_has_the_wanted_target_tokens(corpus: Path, tmp_path: Path) -> None:
    """The same mean with accumulation, in two processes and after a resume: all lines, once."""
    text = (corpus.parent / "train.de").read_text(encoding="utf-8")
    tokens = len(text.split()) + LINES["train"]  # each line's </s>
    wanted = 130
    updates = round(tokens / wanted)  # of an epoch
    options = ["--target-tokens-per-update", wanted]
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    accumulated = [*options, "--update-freq", 2]
    first = losses(train(corpus, one, 2, *accumulated), "wpb")
    rest = losses(train(corpus, one, updates, *accumulated), "wpb")
    assert list(rest) == list(range(3, updates + 1))
    on_two = losses(train_on_two(corpus, two, updates, *options)[0], "wpb")
    for found in (first | rest, on_two):
        assert len(found) == updates
        assert sum(map(float, found.values())) == tokens
        assert all(abs(float(each) - wanted) < 25 for each in found.values())


BLEU = [
    *("--eval-bleu", "--eval-bleu-args", '{"beam": 2}', "--eval-tokenized-bleu"),
    *("--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric"),
]


def test_training_with_eval_bleu_resumes(corpus: Path, tmp_path: Path) -> None:
    """Validation translates in the middle of training, and its counts go into the checkpoint."""
    for updates in (UPDATES, UPDATES + 1):
        result = train(corpus, tmp_path, updates, *BLEU)
        assert result.status == 0, result.output[-4000:]
        assert "valid_bleu" in result.output
    assert list(losses(result)) == [UPDATES + 1]


def test_training_learns_alignments(corpus: Path, tmp_path: Path) -> None:
    """--load-alignments: the loss of attention falls, with checkpointed activations as well."""
    prefixes = []
    for split in ("train", "valid"):
        for suffix in ("en", "de"):
            text = (corpus.parent / f"{split}.{suffix}").read_text(encoding="utf-8")
            (tmp_path / f"{split}.{suffix}").write_text(text, encoding="utf-8")
        links = (" ".join(f"{i}-{i}" for i in range(len(line.split()))) for line in
                 text.strip().split("\n"))  # fmt: skip
        (tmp_path / f"{split}.align").write_text("\n".join(links) + "\n", encoding="utf-8")
        prefixes += [f"--{split}pref", tmp_path / split]
    languages = ["--source-lang", "en", "--target-lang", "de", "--joined-dictionary"]
    words = ["--srcdict", corpus / "dict.en.txt", "--align-suffix", "align"]
    data = tmp_path / "bin"
    succeed("preprocess", *languages, *words, *prefixes, "--destdir", data, folder=tmp_path)
    criterion = ["--criterion", "label_smoothed_cross_entropy_with_alignment"]
    options = ["--load-alignments", *criterion, "--alignment-lambda", 1, "--dropout", 0]
    found = []
    for name, checkpointing in (("plain", []), ("again", ["--checkpoint-activations"])):
        result = train(data, tmp_path, 50, *options, *checkpointing, "--save-dir", tmp_path / name)
        found.append(list(map(float, losses(result, "alignment_loss").values())))
        assert len(found[-1]) == 50, result.output[-4000:]
    assert found[0] == pytest.approx(found[1], abs=2e-3)
    assert sum(found[0][-9:]) < 0.9 * sum(found[0][:9])
