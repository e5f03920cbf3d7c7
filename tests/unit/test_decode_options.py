"""An option of a search is declared once; the task, the search, jobs and commands follow it."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fairseq.dataclass.configs import GenerationConfig
from fairseq.dataclass.utils import interpret_dc_type
from kept_results import read_records
from plugin_models import build, dictionary, random_lines, source_batch
from suite_configs import ROOT, changed, compose_config

from experiments.arguments import Parser
from experiments.config import DECODE_OPTIONS, DecodeConfig, SuiteConfig, parse_config
from experiments.errors import ExperimentError
from experiments.stages.evaluation.translation import make_search
from experiments.stages.graph import inputs_of, job_of
from experiments.stages.sweep import check_overrides, with_search_options
from experiments.translate import ModelFiles, _add_option, _parser, start
from gqa_fairseq.decoding.options import Option
from gqa_fairseq.decoding.rules import OPTIONS, OWN_OPTIONS
from gqa_fairseq.decoding.search import GroupedQueryGenerator
from gqa_fairseq.tasks.gqa_translation import GroupedQueryTranslationConfig

VOCABULARY = dictionary()
FAIRSEQS = {option.name: option for option in fields(GenerationConfig)}
NAMED = [pytest.param(option, id=option.name) for option in OPTIONS]


@pytest.fixture(scope="module")
def quickstart() -> SuiteConfig:
    return compose_config("experiment=quickstart", "attention=gqa2")


# The declaration, and what follows from it in the plugin.


@pytest.mark.parametrize("option", NAMED)
def test_an_option_of_fairseqs_is_declared_as_fairseq_has_it(option: Option) -> None:
    assert option.is_own == (option.name not in FAIRSEQS)
    if not option.is_own:
        assert interpret_dc_type(FAIRSEQS[option.name].type) is option.kind
        assert FAIRSEQS[option.name].default == option.default
    assert option.is_own or option.checked(option.default) == option.default


@pytest.mark.parametrize("option", [pytest.param(own, id=own.name) for own in OWN_OPTIONS])
def test_the_task_and_the_search_have_each_option_that_fairseq_lacks(option: Option) -> None:
    found = {field.name: field for field in fields(GroupedQueryTranslationConfig)}[option.name]
    assert (found.default, found.metadata["help"]) == (option.default, option.help)
    model = build(VOCABULARY)
    assert getattr(GroupedQueryGenerator([model], VOCABULARY), option.name) == option.default
    with pytest.raises(ValueError, match=f"^{option.flag}: 'x' is not {option.values}$"):
        GroupedQueryGenerator([model], VOCABULARY, **{option.name: "x"})


WHOLE = Option(name="so_many", kind=int, default=0, at_least=0, help="")
POSITIVE = Option(name="width", kind=float, default=1.0, above=0.0, help="")
SWITCH = Option(name="on", kind=bool, default=False, help="")


@pytest.mark.parametrize(
    ("option", "good"),
    [(WHOLE, 0), (WHOLE, 7), (POSITIVE, 0.5), (POSITIVE, 2), (SWITCH, True), (SWITCH, False)],
)
def test_a_value_is_of_the_options_kind(option: Option, good: Any) -> None:
    found = option.checked(good)
    assert found == good
    assert type(found) is option.kind


@pytest.mark.parametrize(
    ("option", "bad", "words"),
    [
        (WHOLE, -1, "-1 is not a whole number of 0 or more"),
        (WHOLE, 1.0, "1.0 is not a whole number"),
        (WHOLE, True, "True is not a whole number"),
        (WHOLE, None, "None is not a whole number"),
        (POSITIVE, 0.0, "0.0 is not a number above 0"),
        (POSITIVE, math.inf, "inf is not a number above 0"),
        (POSITIVE, math.nan, "nan is not a number above 0"),
        (POSITIVE, "1", "'1' is not a number above 0"),
        (SWITCH, 1, "1 is not true or false"),
    ],
)
def test_what_an_option_cannot_be_is_refused(option: Option, bad: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        option.checked(bad)


def test_words_of_a_command_line() -> None:
    assert WHOLE.parsed("3") == 3
    assert POSITIVE.parsed("3") == 3.0
    for text in ("x", "1.5", "-1"):
        with pytest.raises(ValueError, match=f"{text}'? is not a whole number of 0 or more"):
            WHOLE.parsed(text)


# Jobs.


def test_jobs_have_what_chooses_words_and_not_what_scores_lengths() -> None:
    assert {"unkpen", "min_len", "no_repeat_ngram_size", "temperature"} <= set(DECODE_OPTIONS)
    assert not {"gnmt_alpha", "lenpen", "unnormalized"} & set(DECODE_OPTIONS)
    page = (ROOT / "docs/decoding.md").read_text(encoding="utf-8")
    assert [name for name in DECODE_OPTIONS if f"`{name}`" not in page] == []
    assert [own.flag for own in OWN_OPTIONS if f"`{own.flag}`" not in page] == []


def test_options_are_set_on_the_command_line_as_any_setting() -> None:
    given = ["-m", "seed=1", "decode.options.min_len=2,3", "decode.options={unkpen: 1}"]
    check_overrides(given)
    added = ["++decode.options.min_len=2,3", "++decode.options={unkpen: 1}"]
    assert with_search_options(given) == [*given[:2], *added]
    config = compose_config("decode.options.no_repeat_ngram_size=3", "decode.options.unkpen=1")
    assert config.decode.options == {"no_repeat_ngram_size": 3, "unkpen": 1.0}
    assert isinstance(config.decode.options["unkpen"], float)  # a file may say 1 or 1.0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"min_len": -1}, "decode.options.min_len: -1 is not a whole number of 0 or more"),
        ({"min_len": "x"}, "decode.options.min_len: 'x' is not a whole number"),
        ({"temperature": 0}, "decode.options.temperature: 0 is not a number above 0"),
        ({"beam": 4}, r"decode.options.beam: a job has no such option \(choose one of unkpen, "),
        ({"lenpen": 1.0}, "decode.options.lenpen: a job has no such option"),
        ({"gnmt_alpha": 0.6}, "decode.options.gnmt_alpha: a job has no such option"),
        ({"sampling": True}, "decode.options.sampling: a job has no such option"),
        ({"min_len": 21}, "decode.options.min_len=21 is above decode.max_len_b=20"),
    ],
)
def test_what_a_job_cannot_ask_for_is_refused_in_one_line(
    quickstart: SuiteConfig, values: dict[str, Any], words: str
) -> None:
    assert quickstart.decode.max_len_b == 20
    with pytest.raises(ExperimentError, match=words) as caught:
        changed(quickstart, {"decode.options": values})
    assert "\n" not in str(caught.value)


def test_fairseqs_search_is_asked_only_for_what_it_does(quickstart: SuiteConfig) -> None:
    stock = changed(quickstart, {"decode.engine": "stock"})
    assert changed(stock, {"decode.options": {"min_len": 3}}).decode.options == {"min_len": 3}
    with pytest.raises(ExperimentError, match="engine=stock finds no repetition without"):
        changed(stock, {"decode.options": {"no_repeat_ngram_size": 3}})


def test_a_shortest_translation_needs_positions_before_any_work(quickstart: SuiteConfig) -> None:
    positions = quickstart.model.max_positions
    words = rf"min_len={positions} and the end of the sentence exceed model.max_positions="
    with pytest.raises(ExperimentError, match=words):
        changed(
            quickstart,
            {"decode.options": {"min_len": positions}, "decode.max_len_b": positions},
        )
    model = build(VOCABULARY, seed=3)
    positions = model.max_positions()[1]
    limits = {"max_len_b": positions, "options": {"min_len": positions - 1}}
    decode = msgspec.structs.replace(quickstart.decode, **limits)
    assert make_search(model, VOCABULARY, decode, 4, "fairseq").min_len == positions - 1
    decode = msgspec.structs.replace(decode, options={"min_len": positions})
    with pytest.raises(ExperimentError, match=f"model's {positions} positions"):
        make_search(model, VOCABULARY, decode, 4, "fairseq")


@pytest.mark.parametrize(
    ("engine", "given", "words"),
    [
        ("gqa", ["--min-len", "900"], "--min-len 900 is above --max-len-b "),
        (
            "stock",
            ["--no-repeat-ngram-size", "3"],
            "--no-repeat-ngram-size: the job's engine, stock, finds no repetition",
        ),
    ],
)
def test_translating_refuses_in_the_words_that_were_typed(
    quickstart: SuiteConfig, engine: str, given: list[str], words: str
) -> None:
    decode = msgspec.structs.replace(quickstart.decode, engine=engine, length_penalties=["fairseq"])
    none = Path("none")
    files = ModelFiles(none, none, none, decode, "cpu", None)
    with pytest.raises(ExperimentError) as caught:
        start(_parser().parse_args(["job", *given]), files)
    assert str(caught.value).startswith(words)
    assert "decode" not in str(caught.value)


def test_an_option_is_an_input_of_the_evaluation_alone(quickstart: SuiteConfig) -> None:
    asked = changed(quickstart, {"decode.options": {"min_len": 3}})
    inputs = inputs_of("evaluate", asked)
    assert inputs == inputs_of("evaluate", quickstart) | {"decode.options.min_len": 3}
    for stage in ("train", "measure"):
        assert inputs_of(stage, asked) == inputs_of(stage, quickstart)
    assert job_of(asked).id != job_of(quickstart).id


def test_an_option_at_its_default_is_none(quickstart: SuiteConfig) -> None:
    usual = {option.name: option.default for option in DECODE_OPTIONS.values()}
    asked = changed(quickstart, {"decode.options": usual})
    assert asked == quickstart
    assert job_of(asked).id == job_of(quickstart).id


def test_recorded_jobs_keep_their_keys_and_their_files() -> None:
    """The committed records are from before there were options."""
    records = read_records(ROOT / "results" / "runs")
    assert records
    for record in records:
        assert "options" not in record.config["decode"]
        config = parse_config(record.config)
        assert msgspec.to_builtins(config)["decode"] == record.config["decode"]
        if record.data.name == "local":
            continue  # a key of one's own files is of what is in them, and they are not here
        job = job_of(config)
        assert job.id == record.job.id
        keys = {stage.name: stage.key for stage in job.stages}
        assert {stage.name: stage.key for stage in record.stages}.items() <= keys.items()


def test_a_record_names_the_options_that_a_job_had(quickstart: SuiteConfig, tmp_path: Path) -> None:
    asked = changed(quickstart, {"decode.options": {"unkpen": 2, "min_len": 3}})
    kept = msgspec.json.decode(msgspec.json.encode(asked))
    assert kept["decode"]["options"] == {"unkpen": 2.0, "min_len": 3}
    assert msgspec.json.decode(msgspec.json.encode(asked), type=SuiteConfig) == asked


@pytest.mark.parametrize("engine", ["gqa", "stock"])
def test_the_options_of_a_job_reach_its_search(engine: str) -> None:
    values: dict[str, Any] = {"unkpen": 2.5, "min_len": 4, "temperature": 1.5}
    if engine == "gqa":
        values["no_repeat_ngram_size"] = 1
    base = (ROOT / "conf/decode/base.yaml").read_bytes()
    asked = msgspec.yaml.decode(base, type=DecodeConfig)
    decode = msgspec.structs.replace(asked, engine=engine, options=values)
    model = build(VOCABULARY, seed=3)
    search = make_search(model, VOCABULARY, decode, 4, "fairseq")
    assert (search.unk_penalty, search.min_len, search.temperature) == (2.5, 4, 1.5)
    found = search.generate([model], source_batch(random_lines(5, VOCABULARY), VOCABULARY))
    best = [hypotheses[0]["tokens"].tolist()[:-1] for hypotheses in found]
    assert min(map(len, best)) >= 4
    if engine == "gqa":
        assert all(len(words) == len(set(words)) for words in best)


def test_translating_text_takes_the_same_options(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["job", "--no-repeat-ngram-size", "3", "--temperature", "2"]
    found = vars(_parser().parse_args(words))
    given = {name: found[name] for name in DECODE_OPTIONS}
    assert given == {**dict.fromkeys(DECODE_OPTIONS), "no_repeat_ngram_size": 3, "temperature": 2.0}
    with pytest.raises(ExperimentError, match="argument --min-len: -1 is not a whole number"):
        _parser().parse_args(["job", "--min-len", "-1"])
    parser = Parser()
    _add_option(parser, SWITCH)
    switches = [parser.parse_args(words).on for words in ([], ["--on"], ["--no-on"])]
    assert switches == [None, True, False]
    text = _parser().format_help()
    assert all(option.flag in text for option in DECODE_OPTIONS.values())
