"""fairseq's own log lines, read into the training curve: nats, real tokens, resumes, timing.

And what a training comes to: a model, or a divergence, which is a result as well.
"""

import math
from pathlib import Path

import msgspec
import pytest

from experiments.progress import in_words
from experiments.records.record import Diverged
from experiments.records.storage import decode_json
from experiments.stages.training.log import (
    TrainUpdates,
    Validation,
    divergence,
    parse_line,
    read_curve,
    read_events,
    us_per_target_token,
)
from experiments.stages.training.train import off_target

# As fairseq wrote them.
TRAIN_LINE = (
    '2026-11-23 23:59:03 | INFO | train_inner | {"epoch": 2, "update": 1.429, "loss": "7.103", '
    '"nll_loss": "7.091", "ppl": "136.35", "wps": "11355", "ups": "27.11", "wpb": "418.8", '
    '"bsz": "38.4", "num_updates": "10", "lr": "1.84975e-06", "gnorm": "1.491", "clip": "100", '
    '"train_wall": "0", "wall": "2"}'
)
VALID_LINE = (
    '2026-11-23 23:59:03 | INFO | valid | {"epoch": 2, "valid_loss": "7.248", "valid_nll_loss": '
    '"7.244", "valid_ppl": "151.58", "valid_wps": "0", "valid_wpb": "128", "valid_bsz": "16", '
    '"valid_num_updates": "10"}'
)
OTHER_LINES = [
    '2026-11-23 23:59:03 | INFO | train | {"epoch": 1, "train_loss": "7.105", "train_nll_loss": '
    '"7.097", "train_wall": "2"}',
    "2026-11-23 23:59:03 | INFO | fairseq_cli.train | Start iterating over samples",
    "    (embed_tokens): Embedding(40, 32, padding_idx=1)",
    "",
]


def updates(update: int, tokens: float = 100.0, rate: float = 1000.0) -> TrainUpdates:
    return TrainUpdates(
        update=update,
        nll_nats_per_token=5.0,
        learning_rate=1e-3,
        target_tokens_per_update=tokens,
        target_tokens_per_s=rate,
        wall_s=float(update),
        grad_norm=0.5 + update,
    )


def validation(update: int, nll: float = 4.0) -> Validation:
    return Validation(update=update, nll_nats_per_token=nll)


def test_a_training_line() -> None:
    assert parse_line(TRAIN_LINE) == TrainUpdates(
        update=10,
        nll_nats_per_token=7.091 * math.log(2),
        learning_rate=1.84975e-06,
        target_tokens_per_update=418.8,
        target_tokens_per_s=11355.0,
        wall_s=2.0,
        grad_norm=1.491,
    )


def test_a_validation_line() -> None:
    assert parse_line(VALID_LINE) == validation(10, 7.244 * math.log(2))


def test_a_training_line_may_lack_a_gradient_norm() -> None:
    """As fairseq's lines do where all updates of an interval overflowed in fp16."""
    event = parse_line(TRAIN_LINE.replace('"gnorm": "1.491", ', ""))
    assert isinstance(event, TrainUpdates)
    assert event.grad_norm is None


@pytest.mark.parametrize("line", [*OTHER_LINES, TRAIN_LINE[:80], TRAIN_LINE[:80] + TRAIN_LINE])
def test_other_lines_say_nothing(line: str) -> None:
    assert parse_line(line) is None


def test_the_curve_counts_real_tokens_from_the_start() -> None:
    curve = read_curve([updates(5, 100.4), updates(10, 200.0), validation(10), updates(15, 50.0)])
    assert [point.update for point in curve] == [5, 10, 15]
    assert [point.target_tokens for point in curve] == [502, 1502, 1752]
    assert [point.dev_nll_nats_per_token for point in curve] == [None, 4.0, None]
    assert [point.grad_norm for point in curve] == [5.5, 10.5, 15.5]


def test_after_a_resume_the_later_line_on_an_update_counts() -> None:
    first = [updates(5), updates(10), validation(10, 4.0), updates(15, 300.0)]
    resumed = [updates(15, 200.0), updates(20), validation(20, 3.0)]
    curve = read_curve([*first, *resumed])
    assert [point.update for point in curve] == [5, 10, 15, 20]
    assert curve[-1].target_tokens == 500 + 500 + 1000 + 500


def test_the_clock_goes_on_after_a_resume() -> None:
    before = [updates(5), updates(10)]  # 5 and 10 s
    after = [
        msgspec.structs.replace(updates(update, tokens=100.0, rate=100.0), wall_s=0.0)
        for update in (10, 15)
    ]
    curve = read_curve([*before, *after])
    assert [point.wall_s for point in curve] == [5.0, 10.0, 15.0]


@pytest.mark.parametrize(("mean", "off"), [(951.0, False), (1049.0, False), (949.0, True)])
def test_an_update_off_its_target_by_more_than_five_percent_is_said(mean: float, off: bool) -> None:
    said = off_target(mean, 1000)
    assert (said is not None) == off
    assert said is None or "949 target tokens, not train.tokens_per_update=1,000" in said


def test_time_per_token_leaves_out_first_updates_validations_and_resumes() -> None:
    slow = 1.0  # tokens a second: one such interval would show
    events = [
        updates(5, rate=slow),
        updates(10, rate=1000.0),
        validation(10),
        updates(15, rate=slow),
        updates(20, rate=500.0),
        # interrupted after 20, resumed from 10
        updates(15, rate=slow),
        updates(20, rate=1000.0),
    ]
    # 500 tokens in 0.5 s, 1 s and 0.5 s
    assert us_per_target_token(events, log_every=5) == pytest.approx(1e6 * 2.0 / 1500)


def test_a_log_without_clean_intervals_is_timed_as_a_whole() -> None:
    events = [updates(5, rate=500.0), validation(5), updates(10, rate=1000.0)]
    # 500 tokens in 1 s and 500 in 0.5 s
    assert us_per_target_token(events, log_every=5) == pytest.approx(1e6 * 1.5 / 1000)


def test_the_very_first_update_has_no_rate() -> None:
    """fairseq writes 0 tokens a second for it, and every update has a line of its own here."""
    events = [updates(1, rate=0.0), validation(1), updates(2, rate=1000.0)]
    assert us_per_target_token(events, log_every=1) == pytest.approx(1000.0)
    resumed = msgspec.structs.replace(updates(3, rate=0.0), wall_s=0.0)
    assert [point.wall_s for point in read_curve([*events, resumed])] == [1.0, 2.0, 2.0]


@pytest.mark.parametrize("events", [[], [validation(5)], [updates(1, rate=0.0)]])
def test_a_log_without_updates_is_refused(events: list[TrainUpdates | Validation]) -> None:
    with pytest.raises(ValueError, match="no updates"):
        us_per_target_token(events, log_every=5)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(40.4, "40 s"), (840.0, "14 min"), (12_000.0, "3 h 20 min"), (90_060.0, "25 h 1 min")],
)
def test_the_time_left_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_a_log_is_read_from_its_file_and_may_be_missing(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    assert read_events(log) == []
    assert divergence(log) is None
    # A separator of text is no end of a line; a byte that is no text stands in no event.
    other = "a\u2028b | INFO | other".encode() + b"\xff"
    log.write_bytes(b"\n".join([*map(str.encode, [TRAIN_LINE, VALID_LINE]), other, b""]))
    assert read_events(log) == [parse_line(TRAIN_LINE), parse_line(VALID_LINE)]
    assert divergence(log) is None


STOPPED = [
    "Traceback (most recent call last):",
    '  File "trainer.py", line 1, in train_step',
    "FloatingPointError: Minimum loss scale reached (0.0001).",
]


def diverged_log(tmp_path: Path, lines: list[str]) -> Path:
    log = tmp_path / "train.log"
    log.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return log


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([TRAIN_LINE, *STOPPED], "Minimum loss scale reached (0.0001)."),
        ([TRAIN_LINE, *STOPPED, "", ""], "Minimum loss scale reached (0.0001)."),
        (STOPPED, "Minimum loss scale reached (0.0001)."),
        ([TRAIN_LINE.replace("7.091", "nan"), TRAIN_LINE], "the loss at update 10 is nan"),
        ([VALID_LINE.replace("7.244", "inf")], "the loss at update 10 is inf"),
        # It went on after that: another error ended it, or nothing did.
        ([*STOPPED, TRAIN_LINE], None),
        ([TRAIN_LINE, "RuntimeError: a FloatingPointError: is only told of"], None),
        ([TRAIN_LINE, "torch.OutOfMemoryError: CUDA out of memory."], None),
        ([], None),
    ],
)
def test_a_training_diverged_when_its_numbers_are_none(
    tmp_path: Path, lines: list[str], reason: str | None
) -> None:
    assert divergence(diverged_log(tmp_path, lines)) == reason


def test_a_diverged_curve_has_no_points_that_are_no_numbers() -> None:
    nan = math.nan
    curve = read_curve(
        [
            updates(5),
            validation(5, nan),
            msgspec.structs.replace(updates(10), nll_nats_per_token=nan),
            msgspec.structs.replace(updates(15), nll_nats_per_token=math.inf),
        ]
    )
    assert [point.update for point in curve] == [5]
    assert curve[0].dev_nll_nats_per_token is None
    [point] = read_curve([msgspec.structs.replace(updates(5), grad_norm=math.inf)])
    assert point.grad_norm is None
    result = Diverged(after_update=5, reason="the loss at update 10 is nan", curve=curve)
    raw = msgspec.json.encode(result)
    assert decode_json(raw, Diverged, Path("result.json")) == result
    early = Diverged(after_update=0, reason="x", curve=[])
    assert early.curve == []
    with pytest.raises(ValueError, match="curve goes beyond"):
        Diverged(after_update=4, reason="x", curve=curve)
