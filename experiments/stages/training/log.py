"""What fairseq's JSON log says of a training: its events, its curve, its speed, how it ended."""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from experiments.records.parts import TrainPoint

# fairseq's logger names the table: `2026-11-24 10:00:00 | INFO | train_inner | {...}`.
_LOG_LINE = re.compile(r"\| INFO \| (train_inner|valid) \| (\{.*\})$")
NATS_PER_BIT = math.log(2)
# What fairseq raises when a loss or a gradient is no number.
_NOT_FINITE = re.compile(r"FloatingPointError: (.+)$")


class TrainUpdates(msgspec.Struct, frozen=True, kw_only=True):
    """The updates since the last such line of the log; losses in nats per target token.

    `grad_norm` is null where no update has one: in fp16 all of them may have overflowed.
    """

    update: int
    nll_nats_per_token: float
    learning_rate: float
    target_tokens_per_update: float
    target_tokens_per_s: float
    wall_s: float
    grad_norm: float | None


class Validation(msgspec.Struct, frozen=True, kw_only=True):
    """A validation after `update`; the loss is in nats per target token."""

    update: int
    nll_nats_per_token: float


def read_events(log: Path) -> list[TrainUpdates | Validation]:
    """What a log says of the training, in its order; nothing where there is no log yet."""
    if not log.exists():
        return []
    text = log.read_text(encoding="utf-8", errors="replace")
    events = map(parse_line, text.split("\n"))
    return [event for event in events if event is not None]


def parse_line(line: str) -> TrainUpdates | Validation | None:
    """What one line of fairseq's JSON log says of the training, None for all other lines.

    fairseq's rate of the very first update is 0: it has nothing to count from.
    """
    match = _LOG_LINE.search(line)
    if match is None:
        return None
    try:
        table, stats = match[1], json.loads(match[2])
    except ValueError:  # two lines in one, where the first was cut
        return None
    if table == "valid":
        return Validation(
            update=int(stats["valid_num_updates"]),
            nll_nats_per_token=float(stats["valid_nll_loss"]) * NATS_PER_BIT,
        )
    return TrainUpdates(
        update=int(stats["num_updates"]),
        nll_nats_per_token=float(stats["nll_loss"]) * NATS_PER_BIT,
        learning_rate=float(stats["lr"]),
        target_tokens_per_update=float(stats["wpb"]),
        target_tokens_per_s=float(stats["wps"]),
        wall_s=float(stats["wall"]),
        grad_norm=float(stats["gnorm"]) if "gnorm" in stats else None,
    )


def read_curve(events: Iterable[TrainUpdates | Validation], after: int = 0) -> list[TrainPoint]:
    """The training curve of a whole log, resumes included: the later line on an update counts.

    Losses that are no numbers have no point, and norms that are none are left out of theirs.
    Updates, tokens and time are counted from the update `after`, where a training goes on from
    another one.
    """
    trained: dict[int, TrainUpdates] = {}
    validated: dict[int, Validation] = {}
    for event in events:
        if not math.isfinite(event.nll_nats_per_token):
            continue
        if isinstance(event, TrainUpdates):
            trained[event.update] = event
        else:
            validated[event.update] = event
    curve, target_tokens, before, wall_s, clock_s = [], 0.0, after, 0.0, 0.0
    for update, event in sorted(trained.items()):
        tokens = event.target_tokens_per_update * (update - before)
        target_tokens += tokens
        before = update
        # After a resume fairseq's clock stands still, at 0, or starts anew.
        if event.wall_s >= clock_s and event.wall_s:
            wall_s += event.wall_s - clock_s
        elif event.target_tokens_per_s:
            wall_s += tokens / event.target_tokens_per_s
        clock_s = event.wall_s
        dev, norm = validated.get(update), event.grad_norm
        curve.append(
            TrainPoint(
                update=update - after,
                train_nll_nats_per_token=event.nll_nats_per_token,
                dev_nll_nats_per_token=dev.nll_nats_per_token if dev else None,
                learning_rate=event.learning_rate,
                target_tokens=round(target_tokens),
                wall_s=wall_s,
                grad_norm=norm if norm is not None and math.isfinite(norm) else None,
            )
        )
    return curve


def us_per_target_token(events: Iterable[TrainUpdates | Validation], log_every: int) -> float:
    """Microseconds of updates per target token.

    fairseq's rate runs from one line to the next, whatever happens in between. A line counts
    only if the updates before it follow another line directly: that leaves out the first updates
    (warming up), the first after a resume and those that a validation interrupted. Where no line
    is left, all count.

    Raises ValueError when the log has no updates at all.
    """
    clean, whole, last_update = _Sum(), _Sum(), None
    for event in events:
        if isinstance(event, Validation):
            last_update = None
            continue
        whole.add(event, log_every)
        if last_update is not None and event.update == last_update + log_every:
            clean.add(event, log_every)
        last_update = event.update
    counted = clean if clean.tokens else whole
    if not counted.tokens:
        raise ValueError("the log has no updates that can be timed")
    return 1e6 * counted.seconds / counted.tokens


class _Sum:
    """Target tokens of log lines that have a rate, and the seconds that they took."""

    def __init__(self) -> None:
        self.tokens = self.seconds = 0.0

    def add(self, event: TrainUpdates, log_every: int) -> None:
        if not event.target_tokens_per_s:
            return
        tokens = event.target_tokens_per_update * log_every
        self.tokens += tokens
        self.seconds += tokens / event.target_tokens_per_s


def divergence(log: Path) -> str | None:
    """Why losses or gradients are no numbers, where some are not; else None."""
    if not log.exists():
        return None
    for event in read_events(log):
        if not math.isfinite(event.nll_nats_per_token):
            return f"the loss at update {event.update} is {event.nll_nats_per_token}"
    # fairseq looks for the first such number in a second pass, which may fail with another error.
    reason = None
    for line in log.read_text(encoding="utf-8", errors="replace").split("\n"):
        if found := _NOT_FINITE.match(line):
            reason = found[1]
        elif parse_line(line):  # it went on
            reason = None
    return reason
