"""Every option of fairseq's Transformer and search is supported or refused, none is ignored."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq import search, utils
from fairseq.dataclass.configs import CommonEvalConfig, GenerationConfig
from fairseq.models.transformer import TransformerConfig
from fairseq.sequence_generator import SequenceGenerator
from fairseq.tasks.translation import TranslationConfig
from hypothesis import given
from hypothesis import strategies as st
from plugin_models import build, dictionary, random_lines, source_batch

from gqa_fairseq import option_table
from gqa_fairseq.decoding.rules import forbid_repeats
from gqa_fairseq.errors import OptionError
from gqa_fairseq.models import config
from gqa_fairseq.models.config import GroupedQueryTransformerConfig
from gqa_fairseq.tasks import gqa_translation, search_options
from gqa_fairseq.tasks.gqa_translation import (
    GroupedQueryTranslationConfig,
    GroupedQueryTranslationTask,
)

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = dictionary()
SEARCH = {option.name: option for option in fields(GenerationConfig) if option.name != "_name"}


def names(dataclass: type) -> set[str]:
    return {option.name for option in fields(dataclass) if not option.name.startswith("_")}


def test_the_page_is_what_the_code_does() -> None:
    page = (ROOT / "docs/fairseq-options.md").read_text(encoding="utf-8")
    assert page == option_table.render(), "python -m gqa_fairseq.option_table makes it anew"


def test_every_option_of_fairseqs_transformer_is_known() -> None:
    stock = {name for name, _, _ in config.stock_options()}
    nested = {"encoder", "decoder", "quant_noise"}
    assert names(TransformerConfig) - nested <= stock
    assert len(stock) > 50
    assert stock <= names(GroupedQueryTransformerConfig)
    assert config.REFUSED.keys() <= stock


@pytest.mark.parametrize("widths", [(None, None), (48, 40)])
def test_options_that_are_not_there_are_as_if_unset(widths: tuple[int | None, int | None]) -> None:
    """A Namespace made by hand has few of them."""
    sizes = {f"{side}_embed_dim": 32 for side in ("encoder", "decoder")}
    given = sizes | {"num_kv_heads": 2, "decoder_layers": 1}
    for side, width in zip(("encoder", "decoder"), widths, strict=True):
        if width is not None:
            given[f"{side}_ffn_embed_dim"] = width
    few, all_options = Namespace(**given), GroupedQueryTransformerConfig(**given)
    config.resolve(few)
    config.resolve(all_options)
    assert vars(few) == {name: getattr(all_options, name) for name in vars(few)}
    assert config.nested(few) == config.nested(all_options)


def test_every_option_of_fairseqs_search_and_task_is_known() -> None:
    kinds = (
        set(search_options.SUPPORTED),
        set(search_options.STOCK_SEARCH),
        search_options.NOT_MEANT.keys(),
        search_options.REFUSED.keys(),
    )
    assert set.union(*map(set, kinds)) == SEARCH.keys()
    assert sum(map(len, kinds)) == len(SEARCH)  # none is there twice
    assert search_options.PLUGIN_SEARCH.keys() <= kinds[0]
    assert names(CommonEvalConfig) == {
        "path", "post_process", "quiet", "model_overrides", "results_path",
    }  # fmt: skip
    assert names(TranslationConfig) < names(GroupedQueryTranslationConfig)
    assert gqa_translation.REFUSED.keys() <= names(TranslationConfig)


def another(kind: Any, default: Any) -> Any:
    """A value that is not the default."""
    if kind is bool:
        return not default
    return kind(default) + 1 if isinstance(default, int | float) else "7"


@pytest.mark.parametrize("name", config.REFUSED)
def test_refused_options_of_the_model_are_named(name: str) -> None:
    kind, default = next((k, d) for n, k, d in config.stock_options() if n == name)
    value = another(kind, default)
    with pytest.raises(OptionError, match=f"^error: --{name.replace('_', '-')}: ") as caught:
        build(VOCABULARY, **{name: value})
    assert "\n" not in str(caught.value)
    build(VOCABULARY, **{name: config._plain(default)})  # what fairseq does unasked is no request


def generator_for(search_name: str = "gqa", models: Any = None, **options: Any) -> Any:
    cfg = GroupedQueryTranslationConfig(search=search_name)
    task = GroupedQueryTranslationTask(cfg, VOCABULARY, VOCABULARY)
    return task.build_generator(models or [build(VOCABULARY)], Namespace(**options))


@pytest.mark.parametrize("name", [*search_options.NOT_MEANT, *search_options.REFUSED])
def test_refused_options_of_the_search_are_named(name: str) -> None:
    option = SEARCH[name]
    value = another(option.type, option.default)
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')}\\b") as caught:
        generator_for(**{name: value})
    assert "\n" not in str(caught.value)
    generator_for(**{name: option.default})


@pytest.mark.parametrize("name", search_options.NEEDS)
def test_options_that_say_more_about_another(name: str) -> None:
    other = search_options.NEEDS[name].replace("_", "-")
    with pytest.raises(ValueError, match=f"needs --{other}: give both"):
        generator_for(**{name: 0.7})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": True, "match_source_len": True}, "mutually exclusive"),
        ({"temperature": 0}, "--temperature must be greater"),
        ({"beam": 4, "diverse_beam_groups": 3}, "--diverse-beam-groups 3 does not divide --beam 4"),
    ],
)
def test_options_that_exclude_each_other_are_value_errors(
    options: dict[str, Any], message: str
) -> None:
    """As fairseq's build_generator raises them, for callers that catch."""
    with pytest.raises(ValueError, match=message):
        generator_for(**options)


def test_an_option_error_ends_a_process_with_one_line() -> None:
    script = "from gqa_fairseq.errors import OptionError\nraise OptionError('--x: leave it out')"
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (1, "error: --x: leave it out\n")
    error = OptionError("--x: leave it out")
    assert isinstance(error, ValueError)
    assert error.code == str(error)


@pytest.mark.parametrize("name", search_options.PLUGIN_SEARCH)
@pytest.mark.parametrize("how", [{"search_name": "stock"}, {"print_alignment": "hard"}])
def test_options_that_fairseqs_own_search_does_not_follow(name: str, how: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} .* in fairseq's own search"):
        generator_for(beam=4, **{name: 2}, **how)
    generator_for(beam=4, **{name: 2})


def test_what_the_refusals_say_of_fairseq() -> None:
    """These fail here when fairseq mends them: then they need not be refused any more."""
    for alignment in ([(0, 0)], torch.empty(0), [["1.0"]]):  # hard, none, soft
        with pytest.raises((TypeError, IndexError)):
            utils.replace_unk("<unk>", "a b", alignment, {}, "<unk>")
    model = build(VOCABULARY)
    sample = source_batch(random_lines(3, VOCABULARY), VOCABULARY)
    strategy = search.DiverseBeamSearch(VOCABULARY, 2, 0.5)
    generator = SequenceGenerator([model], VOCABULARY, beam_size=4, search_strategy=strategy)
    with pytest.raises((IndexError, RuntimeError)):
        generator.generate([model], {**sample, "id": torch.tensor([8, 3, 5])})
    blocker = SequenceGenerator([model], VOCABULARY, no_repeat_ngram_size=1).repeat_ngram_blocker
    lprobs = torch.zeros(1, 9)
    tokens = torch.tensor([[2, 5, 5, 5, 1, 1]])
    assert blocker(tokens, lprobs, 1, 1, 3)[0, 5] == 0


def test_the_model_has_fairseqs_args() -> None:
    model = build(VOCABULARY, encoder_layers=1)
    assert model.args.encoder_layers == 1
    assert model.args.encoder_ffn_embed_dim == model.encoder.layers[0].fc1.out_features


# --no-repeat-ngram-size, the rule by itself.


@given(
    rows=st.lists(st.lists(st.integers(0, 2), min_size=6, max_size=6), min_size=1, max_size=4),
    length=st.integers(0, 6),
    size=st.integers(1, 4),
    only=st.sets(st.integers(0, 3), min_size=1),
)
def test_what_repeats_is_forbidden(
    rows: list[list[int]], length: int, size: int, only: set[int]
) -> None:
    """Said by hand: a word is forbidden if with it the row's last words were there before."""
    lprobs = torch.full((len(rows), 4), -torch.inf)
    lprobs[:, list(only)] = -1.0
    forbid_repeats(lprobs, torch.tensor(rows)[:, :length], size)
    for row, found in zip(rows, lprobs, strict=True):
        said = row[:length]
        before = [said[i : i + size] for i in range(length - size + 1)]
        newest = said[length - size + 1 :] if length >= size - 1 else None
        left = {w for w in only if newest is None or [*newest, w] not in before}
        assert {w for w in range(4) if found[w] > -torch.inf} == (left or only)


def test_overrides_reach_options_that_an_older_checkpoint_lacks() -> None:
    cfg = GroupedQueryTranslationConfig(model_overrides="{'encoder_layers_to_keep': '1', 'x': 2}")
    task = GroupedQueryTranslationTask(cfg, VOCABULARY, VOCABULARY)
    saved = SimpleNamespace(encoder_embed_path="gone.txt")
    task._override(saved)
    assert vars(saved) == {
        "encoder_layers_to_keep": "1",
        "encoder_embed_path": None,
        "decoder_embed_path": None,
    }
