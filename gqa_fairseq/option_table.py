"""fairseq's options and what the plugin does with them, as the tables of docs/fairseq-options.md.

python -m gqa_fairseq.option_table > docs/fairseq-options.md
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields

from fairseq.dataclass.configs import CommonEvalConfig, GenerationConfig
from fairseq.tasks.translation import TranslationConfig

from gqa_fairseq.models import config
from gqa_fairseq.tasks import gqa_translation, search_options

_HEAD = """\
# fairseq's options

What becomes of the options that fairseq users know: **supported**, and then as in fairseq;
**refused** in one line that names the option; or **not meant** for translation with this model, and
refused as well. No option is ignored. One that is given fairseq's own default is accepted.

`python -m gqa_fairseq.option_table` makes this page of the code, and a test holds it to fairseq's
dataclasses.
"""

_FOOT = """
## All others

The options of fairseq's commands, data sets, optimizers, tokenizers and scorers are fairseq's own.
The plugin neither reads nor changes them, with one exception: `--required-batch-size-multiple` has
no effect on translation, because fairseq would leave out the last lines of a text for it.

`--model-overrides` may name every option of the model, with checkpoints that were written before
there was that option as well.
"""


def _model() -> Iterator[tuple[str, str]]:
    for name, _, _ in config.stock_options():
        reason = config.REFUSED.get(name)
        yield name, f"refused: {reason}" if reason else "supported"


def _search() -> Iterator[tuple[str, str]]:
    for option in fields(GenerationConfig):
        name = option.name
        if name.startswith("_"):
            continue
        if name in search_options.NOT_MEANT:
            yield name, f"not meant: it is for {search_options.NOT_MEANT[name]}"
        elif name in search_options.REFUSED:
            yield name, f"refused: {search_options.REFUSED[name]}"
        elif name in search_options.STOCK_SEARCH:
            yield name, "supported, in fairseq's own search"
        elif name in search_options.PLUGIN_SEARCH:
            why = search_options.PLUGIN_SEARCH[name]
            yield name, f"supported, in the plugin's search; fairseq's own {why}, and it is refused"
        elif name in search_options.SUPPORTED:
            needs = search_options.NEEDS.get(name)
            yield name, f"supported, with `{_spelled(needs)}`" if needs else "supported"


def _task() -> Iterator[tuple[str, str]]:
    for option in fields(TranslationConfig):
        # What is taken over from other options has no help and is no option of its own.
        if option.metadata.get("help"):
            reason = gqa_translation.REFUSED.get(option.name)
            yield option.name, f"refused: {reason}" if reason else "supported"


def _evaluation() -> Iterator[tuple[str, str]]:
    for option in fields(CommonEvalConfig):
        if not option.name.startswith("_"):
            yield option.name, "supported"


def _spelled(name: str) -> str:
    return "DATA" if name == "data" else f"--{name.replace('_', '-')}"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| `{_spelled(name)}` | {text} |" for name, text in rows]
    return "\n".join(["| option | |", "|---|---|", *lines])


def render() -> str:
    """The page, as Markdown."""
    tables = {
        "Of the Transformer (`--arch transformer`) with `--arch gqa_transformer`": _model(),
        "Of the search, with `--task gqa_translation`": _search(),
        "Of the translation task, with `--task gqa_translation`": _task(),
        "Of what is translated, and where to": _evaluation(),
    }
    sections = [f"## {title}\n\n{_table(rows)}\n" for title, rows in tables.items()]
    return "\n".join([_HEAD, *sections]) + _FOOT


if __name__ == "__main__":
    print(render(), end="")
