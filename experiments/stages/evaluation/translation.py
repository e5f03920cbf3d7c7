"""How a trained model translates: the same for an evaluation and for text that a user brings.

Sources of like length go through the model together, and the results come back in their own order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

import sentencepiece
import torch
from fairseq import utils
from fairseq.data import Dictionary, LanguagePairDataset
from fairseq.models import BaseFairseqModel
from fairseq.sequence_generator import SequenceGenerator
from fairseq.tasks import FairseqTask
from fairseq.tokenizer import tokenize_line

from experiments.config import DecodeConfig
from experiments.errors import ExperimentError
from experiments.records.checked import Device
from experiments.records.parts import LengthPenalty
from gqa_fairseq.checkpoints.load import load_model
from gqa_fairseq.decoding.int8 import quantize_int8
from gqa_fairseq.decoding.search import GroupedQueryGenerator

GENERATORS = {"gqa": GroupedQueryGenerator, "stock": SequenceGenerator}
# fairseq's result for one sentence: hypotheses, best first, with `tokens` and a length-normalized
# `score` in nats.
Hypotheses = list[dict[str, Any]]


def load_trained(checkpoint: Path, data: Path) -> tuple[BaseFairseqModel, FairseqTask]:
    """The trained model and its task on a folder for fairseq; raises ExperimentError, one line."""
    try:
        return load_model(checkpoint, data)
    except (OSError, ValueError) as error:
        raise ExperimentError(str(error).removeprefix("error: ")) from error


def batches(dataset: LanguagePairDataset, sentences: int) -> Iterator[dict]:
    """Every sentence once, in fairseq's batches of neighbours in length, longest first."""
    order = sorted(range(len(dataset)), key=lambda i: (-dataset.src_sizes[i], i))
    for start in range(0, len(order), sentences):
        yield dataset.collater([dataset[i] for i in order[start : start + sentences]])


def make_search(
    model: BaseFairseqModel,
    dictionary: Dictionary,
    decode: DecodeConfig,
    beam: int,
    penalty: LengthPenalty,
) -> SequenceGenerator:
    """The engine's search with the config's limits and options, this beam and length penalty.

    Raises ExperimentError, one line, where the model has no positions for the shortest translation.
    """
    positions = model.max_positions()[1]
    if decode.options.get("min_len", 0) >= positions:
        raise ExperimentError(
            f"at least {decode.options['min_len']} words and the end of the sentence exceed the "
            f"model's {positions} positions (lower the shortest length)"
        )
    option = {"fairseq": "len_penalty", "gnmt": "gnmt_alpha"}[penalty]
    return GENERATORS[decode.engine](
        [model],
        dictionary,
        beam_size=beam,
        **{option: decode.length_alpha},
        max_len_a=decode.max_len_a,
        max_len_b=decode.max_len_b,
        **decode.search_options,
    )


def translate_batches(
    model: BaseFairseqModel,
    search: SequenceGenerator,
    dataset: LanguagePairDataset,
    batch_sentences: int,
) -> Iterator[dict[int, Hypotheses]]:
    """Hypotheses of every sentence by its index in the dataset, a batch at a time.

    Raises ExperimentError, one line, where the search refuses a batch.
    """
    device = next(model.parameters()).device
    for batch in batches(dataset, batch_sentences):
        batch = utils.move_to_cuda(batch) if device.type == "cuda" else batch
        try:
            found = search.generate([model], batch)
        except ValueError as error:
            raise ExperimentError(str(error)) from error
        yield dict(zip(batch["id"].tolist(), found, strict=True))


def text_of(
    tokens: torch.Tensor, dictionary: Dictionary, pieces: sentencepiece.SentencePieceProcessor
) -> str:
    """The detokenized line of a hypothesis's tokens [T]."""
    return pieces.decode(dictionary.string(tokens).split(" "))


class Translation(NamedTuple):
    """A line of text, and its log-probability in nats over the length penalty's denominator."""

    text: str
    score: float


class Translator:
    """Translates raw text as an evaluation translates the test set of prepared data.

    Args:
        checkpoint: the model.
        dictionaries: a folder with the dict.LANGUAGE.txt of both languages.
        pieces_model: the SentencePiece model of both languages.
        decode: the engine, the limits of lengths, the length penalty's alpha and the batch.
        beam: 1 is greedy search.
        penalty: the formula of the length penalty.
        int8: linear layers in 8 bits, on a CPU.

    Raises:
        ExperimentError: what the model needs cannot be read or does not go together, one line.
    """

    def __init__(
        self,
        checkpoint: Path,
        dictionaries: Path,
        pieces_model: Path,
        decode: DecodeConfig,
        beam: int,
        penalty: LengthPenalty,
        *,
        device: Device = "cpu",
        int8: bool = False,
    ) -> None:
        self._model, self._task = _load_with(checkpoint, dictionaries)
        self._dictionary = self._task.target_dictionary
        self._decode = decode
        if device == "cuda":
            if not torch.cuda.is_available():
                raise ExperimentError("there is no GPU here: give --device cpu")
            self._model.cuda()
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(pieces_model))
            if int8:
                quantize_int8(self._model)
            self._search = make_search(self._model, self._dictionary, decode, beam, penalty)
        except (OSError, RuntimeError, ValueError) as error:
            raise ExperimentError(f"{pieces_model.parent}: {error}".split("\n")[0]) from error
        self._words = _words_of_pieces(self._pieces, self._task.source_dictionary)
        self._longest = self._model.max_positions()[0]

    def translate(
        self,
        lines: Sequence[str],
        nbest: int = 1,
        name: Callable[[int], str] = lambda index: f"line {index + 1}",
        on_done: Callable[[int], None] = lambda count: None,
    ) -> list[list[Translation]]:
        """The `nbest` best translations of each line, best first; a line without text stays empty.

        `on_done` hears after each batch how many lines were in it. The longest translation allowed
        depends on the longest line of a batch, as in fairseq.

        Raises ExperimentError, before anything is translated, for a line that has more tokens than
        the model has positions; `name` says which by its index.
        """
        sources = self._encode(lines, name)
        asked = [index for index, source in enumerate(sources) if len(source) > 1]
        found = [[Translation("", 0.0)] for _ in lines]
        on_done(len(lines) - len(asked))
        dataset = self._task.build_dataset_for_inference(
            [sources[index] for index in asked], [len(sources[index]) for index in asked]
        )
        for batch in translate_batches(
            self._model, self._search, dataset, self._decode.batch_sentences
        ):
            for place, hypotheses in batch.items():
                found[asked[place]] = [
                    Translation(
                        text_of(each["tokens"], self._dictionary, self._pieces),
                        float(each["score"]),
                    )
                    for each in hypotheses[:nbest]
                ]
            on_done(len(batch))
        return found

    def _encode(self, lines: Sequence[str], name: Callable[[int], str]) -> list[torch.Tensor]:
        """Numbers of the source dictionary, int64 [S], the end of the sentence last."""
        end = [self._task.source_dictionary.eos()]
        sources = []
        for index, pieces in enumerate(self._pieces.encode(list(lines))):
            source = [word for piece in pieces for word in self._words[piece]] + end
            if len(source) > self._longest:
                raise ExperimentError(
                    f"{name(index)}: {len(source)} tokens, more than the model's {self._longest} "
                    "positions (divide the line)"
                )
            sources.append(torch.tensor(source))
        return sources


def _load_with(checkpoint: Path, dictionaries: Path) -> tuple[BaseFairseqModel, FairseqTask]:
    """The model and its task, whose data is nothing but dictionaries."""
    path = checkpoint.resolve()
    try:
        with chdir(dictionaries):  # fairseq divides the path of a folder at every colon
            return load_trained(path, Path())
    except ExperimentError:
        raise
    except Exception as error:  # fairseq and torch raise many kinds for another vocabulary
        reason = str(error).strip().split("\n")[-1].strip()
        raise ExperimentError(
            f"{checkpoint}: does not go with the dictionaries in {dictionaries}: {reason}"
        ) from error


def _words_of_pieces(
    pieces: sentencepiece.SentencePieceProcessor, dictionary: Dictionary
) -> list[list[int]]:
    """The numbers in fairseq's dictionary of each piece, as the prepared data has them.

    Text that spells one of fairseq's specials, such as `<pad>`, is unknown text. White space within
    a piece divides it, as fairseq reads lines.
    """
    specials = set(dictionary.symbols[: dictionary.nspecial])
    words = []
    for number in range(pieces.get_piece_size()):
        names = tokenize_line(pieces.id_to_piece(number))
        words.append([dictionary.unk() if n in specials else dictionary.index(n) for n in names])
    return words
