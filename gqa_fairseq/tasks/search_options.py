"""fairseq's options of a search: which the plugin's task follows, and which it refuses.

docs/fairseq-options.md shows them (option_table.py); a test holds both to fairseq's dataclasses.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from fairseq.dataclass.configs import GenerationConfig

from gqa_fairseq.decoding.rules import OPTIONS
from gqa_fairseq.errors import OptionError

# Options of other tasks and models, with what they are for.
_SPEECH = "translation of speech in two passes"
_REFINEMENT = "models that refine a translation in several passes"
NOT_MEANT: dict[str, str] = {
    "beam_mt": _SPEECH,
    "max_len_a_mt": _SPEECH,
    "max_len_b_mt": _SPEECH,
    "lenpen_mt": _SPEECH,
    "eos_token": _SPEECH,
    "iter_decode_eos_penalty": _REFINEMENT,
    "iter_decode_max_iter": _REFINEMENT,
    "iter_decode_force_max_iter": _REFINEMENT,
    "iter_decode_with_beam": _REFINEMENT,
    "iter_decode_with_external_reranker": _REFINEMENT,
    "retain_iter_history": _REFINEMENT,
    "print_step": _REFINEMENT,
    "decoding_format": _REFINEMENT,
    "no_early_stop": "older versions of fairseq; it does nothing in this one",
    "no_beamable_mm": "convolutional models",
}

# Options that fairseq's own code makes fail.
REFUSED: dict[str, str] = {
    "replace_unk": "fairseq's code for it fails at the first unknown word: leave it out",
}

# Options that say more about another, which has to be given.
NEEDS: dict[str, str] = {
    "diverse_beam_strength": "diverse_beam_groups",
    "lm_weight": "lm_path",
    "retain_dropout_modules": "retain_dropout",
    "sampling_topk": "sampling",
    "sampling_topp": "sampling",
}

# Options that the plugin's search follows.
SUPPORTED = (
    *(option.name for option in OPTIONS if not option.is_own),
    "beam",
    "nbest",
    "max_len_a",
    "max_len_b",
    "prefix_size",
    "sampling",
    "sampling_topk",
    "sampling_topp",
    "diverse_beam_groups",
    "diverse_beam_strength",
    "retain_dropout",
    "retain_dropout_modules",
    "no_seed_provided",
    "sacrebleu",
)

# Options with which a search is fairseq's own, with a note in the log.
STOCK_SEARCH = (
    "match_source_len",
    "diversity_rate",
    "constraints",
    "print_alignment",
    "score_reference",
    "lm_path",
    "lm_weight",
)

# Those of SUPPORTED that fairseq's own search does not follow, on a CPU at the least, and why.
PLUGIN_SEARCH: dict[str, str] = {
    "diverse_beam_groups": "fails after the first batch",
    **{option.name: option.stock for option in OPTIONS if option.stock},
}

_DEFAULTS: dict[str, Any] = {option.name: option.default for option in fields(GenerationConfig)}


def check_search(args: Any, is_stock: bool) -> None:
    """Refuses what would be ignored or would fail later.

    Args:
        args: fairseq's generation options; what is not there has its default.
        is_stock: the search is fairseq's own class, not the plugin's.

    Raises:
        OptionError: an option is not for translation with this task, needs another one, or does
            not work in fairseq's own search.
    """
    given = {name for name, default in _DEFAULTS.items() if getattr(args, name, default) != default}
    for name in sorted(given):
        option = _spelled(name)
        if name in NOT_MEANT:
            raise OptionError(f"{option} is for {NOT_MEANT[name]}: leave it out")
        if name in REFUSED:
            raise OptionError(f"{option}: {REFUSED[name]}")
        if name in NEEDS and NEEDS[name] not in given:
            raise OptionError(f"{option} needs {_spelled(NEEDS[name])}: give both, or none")
        if is_stock and name in PLUGIN_SEARCH:
            raise OptionError(
                f"{option} {PLUGIN_SEARCH[name]} in fairseq's own search: leave it out, or "
                "--search stock and --print-alignment"
            )


def _spelled(name: str) -> str:
    return f"--{name.replace('_', '-')}"
