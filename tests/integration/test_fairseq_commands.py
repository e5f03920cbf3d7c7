"""The plugin under fairseq's own commands, with `--user-dir` and nothing else of this suite.

Everything happens on a tiny corpus made here. Test lines are 13, no multiple of 8: stock fairseq
would drop five of them.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fairseq_commands import Result, losses, make_corpus, run, succeed
from plugin_commands import (
    LINES,
    MODEL,
    PLUGIN,
    TASK,
    TRAIN,
    UPDATES,
    train,
    train_arguments,
    weights,
)

from gqa_fairseq.checkpoints.load import load_model
from gqa_fairseq.tasks.gqa_translation import (
    GroupedQueryTranslationConfig,
    GroupedQueryTranslationTask,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), LINES)


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The uninterrupted run; by the installed command itself, for once."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    command = Path(sys.executable).parent / "fairseq-train"
    board = ["--tensorboard-logdir", "board"]
    arguments = [str(argument) for argument in train_arguments(corpus, UPDATES, *board)]
    ended = subprocess.run(
        [command, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:]
    return folder / "checkpoints" / "checkpoint_last.pt", Result(0, ended.stdout)


def test_training_resumes_where_it_stopped(
    corpus: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    """The same losses and, at the end, the same weights as without an interruption."""
    checkpoint, uninterrupted = trained
    whole = losses(uninterrupted)
    assert list(whole) == list(range(1, UPDATES + 1))
    first = train(corpus, tmp_path, 5)
    second = train(corpus, tmp_path, UPDATES)
    assert first.status == second.status == 0, second.output[-4000:]
    assert losses(first) == {update: whole[update] for update in range(1, 6)}
    assert losses(second) == {update: whole[update] for update in range(6, UPDATES + 1)}
    ours, theirs = weights(tmp_path / "checkpoints/checkpoint_last.pt"), weights(checkpoint)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_tensorboard_shows_the_losses_of_the_log(trained: tuple[Path, Result]) -> None:
    """And no command says that a package is missing for it."""
    checkpoint, result = trained
    [events] = (checkpoint.parents[1] / "board/train_inner").iterdir()
    shown = {step: value for step, tag, value in scalars(events) if tag == "loss"}
    printed = {update: float(loss) for update, loss in losses(result).items()}
    assert shown == {update: pytest.approx(loss, abs=1e-3) for update, loss in printed.items()}
    assert "tensorboardX" not in result.output


def scalars(events: Path) -> Iterator[tuple[int, str, float]]:
    """Step, tag and value of what TensorBoard would draw: TFRecords, each of one event."""
    from tensorboardX.proto.event_pb2 import Event

    raw, position = events.read_bytes(), 0
    while position < len(raw):
        (length,) = struct.unpack_from("<Q", raw, position)
        event = Event.FromString(raw[position + 12 : position + 12 + length])
        position += length + 16  # the length and the event have a checksum each
        for value in event.summary.value:
            yield event.step, value.tag, value.simple_value


def hypotheses(result: Result) -> dict[int, str]:
    rows = (line.split("\t") for line in result.lines("H-"))
    return {int(name.removeprefix("H-")): text for name, _, text in rows}


SEARCH = ["--beam", 4, "--max-len-b", 12, "--num-workers", 0, "--cpu"]


@pytest.fixture(scope="module")
def generated(
    corpus: Path, trained: tuple[Path, Result], tmp_path_factory: pytest.TempPathFactory
) -> Result:
    folder = tmp_path_factory.mktemp("generate")
    return succeed(
        "generate", corpus, *TASK, "--path", trained[0], *SEARCH, "--batch-size", 8, folder=folder
    )


def test_generate_translates_every_line(
    generated: Result, corpus: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    assert sorted(hypotheses(generated)) == list(range(LINES["test"]))
    stock_task = ["--user-dir", PLUGIN, "--task", "translation"]
    stock = succeed(
        "generate", corpus, *stock_task, "--path", trained[0], *SEARCH, "--batch-size", 8,
        folder=tmp_path,
    )  # fmt: skip
    kept = hypotheses(stock)
    assert len(kept) == 8  # why the plugin's task does it differently
    assert kept == {line: hypotheses(generated)[line] for line in kept}


@pytest.mark.parametrize("lines", [1, 5, 11])
def test_generate_translates_every_line_of_the_training_text(
    lines: int, corpus: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    """Whatever a text is called: here the same lines are the training and the validation text."""
    prefixes = []
    for split in ("train", "valid"):
        for language in ("en", "de"):
            text = (corpus.parent / f"test.{language}").read_text(encoding="utf-8").split("\n")
            path = tmp_path / f"{split}.{language}"
            path.write_text("\n".join(text[:lines]) + "\n", encoding="utf-8", newline="\n")
        prefixes += [f"--{split}pref", tmp_path / split]
    languages = ["--source-lang", "en", "--target-lang", "de", "--joined-dictionary"]
    words = ["--srcdict", corpus / "dict.en.txt"]
    data = tmp_path / "bin"
    succeed("preprocess", *languages, *words, *prefixes, "--destdir", data, folder=tmp_path)
    found = [
        hypotheses(
            succeed(
                "generate", data, *TASK, "--path", trained[0], *SEARCH, "--gen-subset", split,
                folder=tmp_path,
            )
        )
        for split in ("train", "valid")
    ]  # fmt: skip
    assert sorted(found[0]) == list(range(lines))
    assert found[0] == found[1]


def test_interactive_translates_as_generate_does(
    generated: Result, corpus: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    result = succeed(
        "interactive", corpus, *TASK, "--path", trained[0], *SEARCH,
        "--input", corpus.parent / "test.en", "--buffer-size", 5, "--batch-size", 5,
        folder=tmp_path,
    )  # fmt: skip
    assert hypotheses(result) == hypotheses(generated)


def test_validate_scores_every_line(
    corpus: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    """The loss is that of all 11 lines, computed here from the loaded model."""
    result = succeed(
        "validate", corpus, *TASK, "--path", trained[0], "--max-tokens", 120, "--num-workers", 0,
        "--cpu", "--log-format", "json", folder=tmp_path,
    )  # fmt: skip
    (summary,) = (
        json.loads(line.partition("| valid | ")[2])
        for line in result.output.split("\n")
        if "| valid | {" in line
    )
    model, task = load_model(trained[0], corpus)
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    nll_bits, tokens = 0.0, 0
    for index in range(len(dataset)):
        sample = dataset.collater([dataset[index]])
        log_probs = model.get_normalized_probs(model(**sample["net_input"]), log_probs=True)
        picked = log_probs.gather(2, sample["target"][:, :, None])
        nll_bits -= picked.sum().item() / torch.log(torch.tensor(2.0)).item()
        tokens += sample["ntokens"]
    assert len(dataset) == LINES["valid"]
    assert float(summary["valid_nll_loss"]) == pytest.approx(nll_bits / tokens, abs=2e-3)


def test_stock_architectures_stay_usable(corpus: Path, tmp_path: Path) -> None:
    """The plugin's task with fairseq's Transformer: what the plugin is compared with."""
    model = [
        *("--arch", "transformer_iwslt_de_en", "--encoder-layers", "1", "--decoder-layers", "1"),
        *("--encoder-embed-dim", "32", "--decoder-embed-dim", "32"),
    ]
    for updates in (1, 2):
        result = train(corpus, tmp_path, updates, model=model)
        assert list(losses(result)) == [updates], result.output[-4000:]
    checkpoint = tmp_path / "checkpoints/checkpoint_last.pt"
    result = succeed("generate", corpus, *TASK, "--path", checkpoint, *SEARCH, folder=tmp_path)
    assert sorted(hypotheses(result)) == list(range(LINES["test"]))


# What fairseq users know besides.


def test_retained_dropout_translates_otherwise(
    generated: Result, corpus: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    """In both searches; that the seed decides is tested in unit/test_retained_dropout.py."""
    retained = ["--retain-dropout", "--retain-dropout-modules", "TransformerDecoderLayer"]
    for search in ("gqa", "stock"):
        result = succeed(
            "generate", corpus, *TASK, "--path", trained[0], *SEARCH, "--search", search, *retained,
            folder=tmp_path,
        )  # fmt: skip
        scores = result.lines("P-")
        assert len(scores) == LINES["test"]
        assert not set(scores) & set(generated.lines("P-"))


def alignments(result: Result) -> list[list[str]]:
    return [line.split("\t")[1].split() for line in result.lines("A-")]


def test_alignments_of_translations_and_of_references(
    corpus: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    """As many links as words: each target word has the source word that it looks at most."""
    for options in ([], ["--score-reference"]):
        result = succeed(
            "generate", corpus, *TASK, "--path", trained[0], *SEARCH, "--print-alignment", *options,
            folder=tmp_path,
        )  # fmt: skip
        found = alignments(result)
        assert list(map(len, found)) == [
            len(line.split("\t")[2].split()) for line in result.lines("H-")
        ]
        assert any(found)


def test_a_checkpoint_without_some_layers(corpus: Path, tmp_path: Path) -> None:
    """--model-overrides as fairseq documents it, with one checkpoint and its options as given."""
    layers = ["--encoder-layers", 2, "--decoder-layers", 2, "--decoder-layerdrop", 0.2]
    train(corpus, tmp_path, UPDATES, *layers)
    path = ["--path", tmp_path / "checkpoints/checkpoint_last.pt"]
    overrides = {"encoder_layers_to_keep": "0", "decoder_layers_to_keep": "1"}
    result = succeed(
        "generate", corpus, *TASK, *path, *SEARCH, "--model-overrides", overrides, folder=tmp_path
    )
    assert "Pruning model" in result.output
    assert len(result.lines("P-")) == LINES["test"]


def test_several_texts_are_one(corpus: Path, tmp_path: Path) -> None:
    """`train1` goes with `train`, and `valid1` with `valid` where --combine-valid-subsets says so.

    fairseq's own task fails there unless --upsample-primary is given.
    """
    shutil.copytree(corpus, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("valid.*"):
        shutil.copy(path, path.with_name(path.name.replace("valid", "train1", 1)))
    languages = {"source_lang": "en", "target_lang": "de"}
    cfg = GroupedQueryTranslationConfig(data=str(tmp_path), dataset_impl=None, **languages)
    task = GroupedQueryTranslationTask.setup_task(cfg)
    task.load_dataset("train", combine=True)
    task.load_dataset("valid")
    together, second = task.datasets["train"], task.datasets["valid"]
    assert len(together) == LINES["train"] + LINES["valid"]
    for line in range(LINES["valid"]):
        for side in ("source", "target"):
            assert torch.equal(together[LINES["train"] + line][side], second[line][side])


# Bad input: one line, no traceback.


def assert_one_line(result: Result, message: str) -> None:
    (line,) = result.lines("error: ")
    assert message in line
    assert result.status != 0
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-kv-heads", 3], "num_kv_heads 3 does not divide 4 attention heads"),
        (["--attention-placement", "encoder"], "choose one of all, decoder"),
        (["--decoder-embed-dim", 64], "encoder and decoder embed_dim differ"),
        (["--encoder-attention-heads", 5, "--decoder-attention-heads", 5], "not divisible by 5"),
        (["--target-tokens-per-update", 780], "raise --update-freq, or --max-tokens (to "),
        (["--target-tokens-per-update", 0], "a positive number"),
        (["--target-tokens-per-update", 99, "--batch-size", 8], "exclude each other"),
        (["--int8"], "leave it out of training"),
        (["--int8", "--eval-bleu", "--eval-bleu-args", '{"beam": 2}'], "leave it out of training"),
        (["--gnmt-alpha", 0.6], "--gnmt-alpha is about translating"),
        (["--search", "stock"], "--search is about translating"),
        (["--num-batch-buckets", 4], "this version of numpy"),
        (["--quant-noise-pq", 0.1], "--quant-noise-pq: quantization noise is not supported"),
    ],
    ids=lambda value: "-".join(map(str, value[::2])) if isinstance(value, list) else None,
)
def test_bad_options(options: list[object], message: str, corpus: Path, tmp_path: Path) -> None:
    assert_one_line(train(corpus, tmp_path, 1, *options), message)
    assert not list(tmp_path.rglob("*.pt"))


def test_8_bits_are_for_translation(
    corpus: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    """fairseq-validate computes a loss, and --eval-bleu makes a search before weights are read."""
    path = ["--path", trained[0]]
    result = run(
        "validate", corpus, *TASK, *path, "--max-tokens", 120, "--cpu", "--int8", folder=tmp_path
    )
    assert_one_line(result, "leave it out of training and of validation")
    result = run(
        "generate", corpus, *TASK, *path, *SEARCH, "--int8", "--eval-bleu", folder=tmp_path
    )
    assert_one_line(result, "--eval-bleu out of translation")
    result = succeed("generate", corpus, *TASK, *path, *SEARCH, "--int8", folder=tmp_path)
    assert sorted(hypotheses(result)) == list(range(LINES["test"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--iter-decode-max-iter", 4], "--iter-decode-max-iter is for models that refine"),
        (["--retain-dropout", "--retain-dropout-modules", "Decoder"], "choose of TransformerEnc"),
    ],
    ids=lambda value: "-".join(map(str, value[::2])) if isinstance(value, list) else None,
)
def test_bad_options_of_a_search(
    options: list[object], message: str, corpus: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    path = ["--path", trained[0]]
    assert_one_line(run("generate", corpus, *TASK, *path, *SEARCH, *options, folder=tmp_path),
                    message)  # fmt: skip


WIDTHS = ["--encoder-ffn-embed-dim", 88, "--decoder-ffn-embed-dim", 88]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-kv-heads", 1], "the checkpoint's encoder.layers.0.self_attn.k_proj.weight is"),
        (["--decoder-layers", 2, *WIDTHS], "this model has decoder.layers.1."),
        (["--encoder-normalize-before"], "this model has encoder.layer_norm.weight, which the"),
    ],
    ids=["heads", "layers", "norms"],
)
def test_checkpoint_of_another_shape(
    options: list[object],
    message: str,
    corpus: Path,
    trained: tuple[Path, Result],
    tmp_path: Path,
) -> None:
    result = train(corpus, tmp_path, 1, "--restore-file", trained[0], *options)
    assert_one_line(result, message)


@pytest.mark.parametrize("search", [[], ["--search", "stock"], ["--int8"]], ids=str)
def test_weights_that_are_no_numbers(
    search: list[str], corpus: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    state = torch.load(trained[0], weights_only=True)
    name = "decoder.layers.0.fc1.weight"
    state["model"][name].view(-1)[3] = float("nan")
    path = tmp_path / "broken.pt"
    torch.save(state, path)
    result = run("generate", corpus, *TASK, "--path", path, *SEARCH, *search, folder=tmp_path)
    assert_one_line(result, f"{name} has weights that are no finite numbers")
    assert not hypotheses(result)
    with pytest.raises(ValueError, match=f"broken.pt: {name} has weights"):
        load_model(path, corpus)


def test_a_named_architecture_with_separate_dictionaries(corpus: Path, tmp_path: Path) -> None:
    languages = ["--source-lang", "en", "--target-lang", "de", "--trainpref", tmp_path / "train"]
    for language, line in (("en", "a b c"), ("de", "d e")):
        (tmp_path / f"train.{language}").write_text(f"{line}\n" * 9, encoding="utf-8")
    data = tmp_path / "bin"
    succeed("preprocess", *languages, "--destdir", data, folder=tmp_path)
    named = ["--arch", "mqa_transformer_small"]
    refused = train(data, tmp_path, 1, "--disable-validation", model=named)
    assert_one_line(refused, "prepare the data with --joined-dictionary, or name the sizes with")
    unshared = [option for option in MODEL if option != "--share-all-embeddings"]
    trained = train(data, tmp_path, 1, "--disable-validation", model=unshared)
    assert list(losses(trained)) == [1]


class RunsCommand:
    """Pickled, it asks the reader to run a shell command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def malicious(trained: tuple[Path, Result], tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint that is whole but for one object, and the file that the object would make."""
    state = torch.load(trained[0], weights_only=True)
    marker = tmp_path / "code-ran"
    state["extra_state"]["note"] = RunsCommand(marker)
    torch.save(state, tmp_path / "malicious.pt")
    return tmp_path / "malicious.pt", marker


def test_commands_refuse_checkpoints_that_run_code(
    malicious: tuple[Path, Path], corpus: Path, tmp_path: Path
) -> None:
    path, marker = malicious
    result = run("generate", corpus, *TASK, "--path", path, *SEARCH, folder=tmp_path)
    assert result.status != 0
    assert "system" in result.output
    assert not hypotheses(result)
    resumed = train(corpus, tmp_path, 1, "--restore-file", path)
    assert resumed.status != 0
    assert not losses(resumed)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the trap does work where nobody guards the door
    assert marker.exists()


def test_a_process_that_imports_nothing_else_loads_a_checkpoint(
    corpus: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    """Model and task are registered and the allowlist is set, from any current folder."""
    script = (
        "import sys; from gqa_fairseq.checkpoints.load import load_model; "
        "model, task = load_model(*sys.argv[1:]); "
        "print(type(model).__name__, type(task).__name__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, trained[0], corpus],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(PLUGIN.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = ["GroupedQueryTransformerModel", "GroupedQueryTranslationTask"]
    assert result.stdout.split() == expected


def test_a_relative_user_dir(corpus: Path, tmp_path: Path) -> None:
    """The README's commands name the plugin as it lies in the current folder."""
    (tmp_path / "gqa_fairseq").symlink_to(PLUGIN)
    options = ["--user-dir", "gqa_fairseq", "--task", "gqa_translation"]
    arguments = [*MODEL, *TRAIN, "--save-dir", "checkpoints", "--max-update", 1]
    result = succeed("train", corpus, *options, *arguments, folder=tmp_path)
    assert list(losses(result)) == [1]


def test_load_model_refuses_with_one_line(malicious: tuple[Path, Path], corpus: Path) -> None:
    path, marker = malicious
    with pytest.raises(ValueError, match=r"posix\.system") as caught:
        load_model(path, corpus)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_load_model_errors(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_model(tmp_path / "absent.pt", corpus)
    (tmp_path / "text.pt").write_text("not a checkpoint", encoding="utf-8")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.pt")
    for name in ("text.pt", "empty.pt", "other.pt"):
        with pytest.raises(ValueError, match="is not a fairseq checkpoint") as caught:
            load_model(tmp_path / name, corpus)
        assert "\n" not in str(caught.value)
