"""What an option of a search is: one declaration, from which all that names it follows.

rules.py declares each (OPTIONS). The task's command line, the constructor of the search, the
setting `decode.options` of jobs, the arguments of experiments.translate and their refusals read the
declaration. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from gqa_fairseq.decoding.rules import LengthPenalty, Rule

Value = bool | int | float
_KINDS: dict[type[Value], str] = {bool: "true or false", int: "a whole number", float: "a number"}


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a search.

    `name` is fairseq's where fairseq has the option: `unkpen` is `--unkpen` on a command line.
    `default` is fairseq's as well; an own option (`is_own`) changes nothing where it has its
    default, which is None or False. `argument` is what fairseq's SequenceGenerator calls it, where
    that is not `name`. `stock` says why fairseq's own search does not follow an option that fairseq
    has; None: it does.

    `rule` makes what the option does to the next word, out of the search and a batch's source
    tokens [B, S]; `penalty` makes how it scores a finished hypothesis. Both give None where the
    search was not asked for it. `place` is where the rule stands among the others: `before` what
    --prefix-size forces, `free` in its place (where no word is forced), or `last`, after all
    others.
    """

    name: str
    kind: type[Value]
    default: Value | None = None
    help: str
    at_least: float = -math.inf
    above: float = -math.inf
    argument: str = ""
    is_own: bool = False
    stock: str | None = None
    place: Literal["before", "free", "last"] = "free"
    rule: Callable[[Any, Tensor], Rule | None] | None = None
    penalty: Callable[[Any], LengthPenalty | None] | None = None

    @property
    def flag(self) -> str:
        """Such as `--no-repeat-ngram-size`."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def keyword(self) -> str:
        """What the constructor of the search calls it."""
        return self.argument or self.name

    @property
    def values(self) -> str:
        """What it may be, such as `a whole number of 0 or more`."""
        bounds = ""
        if self.at_least > -math.inf:
            bounds += f" of {self.at_least:g} or more"
        if self.above > -math.inf:
            bounds += f" above {self.above:g}"
        return _KINDS[self.kind] + bounds

    def checked(self, value: object) -> Value:
        """The value, as this option's kind; a whole number is a float where one is wanted.

        Raises:
            ValueError: another kind, or out of range; the message does not name the option.
        """
        is_bool = isinstance(value, bool)
        if isinstance(value, bool | int | float) and is_bool == (self.kind is bool):
            is_whole = self.kind is float or isinstance(value, int)
            is_within = self.at_least <= value and self.above < value < math.inf
            if is_bool or (is_whole and is_within):
                return self.kind(value)
        raise ValueError(f"{value!r} is not {self.values}")

    def parsed(self, text: str) -> Value:
        """The checked value of a command line's word; raises ValueError as `checked`."""
        try:
            number = self.kind(text)
        except ValueError:
            raise ValueError(f"{text!r} is not {self.values}") from None
        return self.checked(number)
