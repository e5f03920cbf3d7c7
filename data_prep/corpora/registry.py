"""The corpora that can be prepared, and which data a spec asks for."""

import msgspec

from data_prep.corpora.corpus import Corpus
from data_prep.corpora.local import Local
from data_prep.corpora.multi30k_en_de import Multi30k
from data_prep.corpora.sample_en_de import Sample
from data_prep.corpora.wmt14_en_de import Wmt14
from data_prep.spec import DataError, DataSpec, Setting, digest

# Part of every request: raise it, and say why, when the same request gives other data than before.
RECIPE = 1

CORPORA: dict[str, type[Corpus]] = {
    corpus.name: corpus for corpus in (Sample, Multi30k, Wmt14, Local)
}


def request(spec: DataSpec) -> str:
    """The sha256 of what `spec` asks for: recipe, settings and the checksum of every input file.

    The files of `local` are read for it; the checksums of other corpora are known before their
    files are there. The places of files and of downloads have no part in it. Raises DataError as
    `open_corpus` does, and when a setting is out of its range.
    """
    return request_for(spec, open_corpus(spec))


def request_for(spec: DataSpec, corpus: Corpus) -> str:
    """The request of `spec` where its corpus is open already."""
    try:
        # msgspec checks what it reads, not what is made in Python; and reads max_ratio 2 as 2.0.
        checked = msgspec.convert(msgspec.to_builtins(spec), DataSpec)
    except msgspec.ValidationError as error:
        raise DataError(f"{spec.name}: {error}") from error
    places = {"mirror"}.union(*(each.settings for each in CORPORA.values()))
    fields = [field for field in DataSpec.__struct_fields__ if field not in places]
    settings = {field: getattr(checked, field) for field in fields}
    if checked.nearest is False:  # the default has no part, as before there was a choice
        settings["nearest"] = False
    if corpus.drops_near_duplicates:
        settings["drops_near_duplicates"] = True
    return digest([RECIPE, settings, corpus.inputs])


def corpus_named(name: str) -> type[Corpus]:
    """The class of the corpus `name`; raises DataError with all names when there is none."""
    if name not in CORPORA:
        raise DataError(f"no corpus is called {name!r}: choose one of {', '.join(CORPORA)}")
    return CORPORA[name]


def open_corpus(spec: DataSpec) -> Corpus:
    """The corpus that `spec` names.

    Raises DataError, one line, when there is no such corpus, when it does not have the languages,
    when a setting belongs to another corpus, or when an input file of `local` cannot be used.
    """
    corpus_class = corpus_named(spec.name)
    for owner in CORPORA.values():
        foreign = [field for field in owner.settings if getattr(spec, field) is not None]
        if foreign and owner is not corpus_class:
            names = [part for field in foreign for part in (", ", Setting(field))][1:]
            raise DataError(f"{spec.name} does not take ", *names, f": {owner.name} does")
    corpus = corpus_class(spec)
    if sorted(corpus.languages) != sorted(spec.languages):
        one, other = corpus.languages
        raise DataError(
            f"{spec.name} has no text from {spec.source_lang} to {spec.target_lang}: choose ",
            *(Setting("source_lang"), f"={one} ", Setting("target_lang"), f"={other}, or "),
            *(Setting("source_lang"), f"={other} ", Setting("target_lang"), f"={one}"),
        )
    return corpus
