"""The joint SentencePiece vocabulary of both languages, and fairseq's dictionary written from it.

The dictionary holds every piece, whether the corpus uses it or not, so that its size depends on the
vocabulary alone. The vocabulary is trained in a process of its own
(`python -m data_prep.transform.vocabulary`), whose output goes to a log.
"""

import re
import sys
from collections.abc import Sequence
from contextlib import chdir
from itertools import islice
from pathlib import Path

import sentencepiece

from data_prep.spec import DataError, Setting
from data_prep.system.subprocesses import run_logged
from data_prep.text import open_for_writing, read_lines

MODEL_NAME = "spm.model"
DICTIONARY_NAME = "dict.txt"
UNKNOWN = "<unk>"
# fairseq puts these four in front of every dictionary; sentencepiece has three of them.
FAIRSEQ_SPECIALS = frozenset(("<s>", "<pad>", "</s>", UNKNOWN))
MAX_LINES = 1_000_000  # more would cost memory and time, and hardly change the pieces


def train_vocabulary(texts: Sequence[Path], vocab_size: int, folder: Path, log: Path) -> None:
    """Write spm.model, spm.vocab and dict.txt into `folder` from the lines of `texts`.

    Where there are more than MAX_LINES, lines at even distances are used. The same text gives the
    same bytes. Raises DataError when the text does not give `vocab_size` pieces; the log says more.
    """
    command = [sys.executable, "-m", "data_prep.transform.vocabulary", str(vocab_size), str(folder)]
    try:
        run_logged([*command, *map(str, texts)], log)
    except DataError as error:
        before, colon, after = str(error).partition(": vocab_size")
        if colon:
            raise DataError(before, ": ", Setting("vocab_size"), after) from error
        raise
    with open_for_writing(folder / DICTIONARY_NAME) as stream:
        for name in piece_names(load_pieces(folder / MODEL_NAME)):
            if name not in FAIRSEQ_SPECIALS:
                stream.write(f"{name} 1\n")


def load_pieces(model: Path) -> sentencepiece.SentencePieceProcessor:
    """The SentencePiece model in the file `model`."""
    return sentencepiece.SentencePieceProcessor(model_file=str(model))


def piece_names(pieces: sentencepiece.SentencePieceProcessor) -> list[str]:
    """The name that each piece id has for fairseq.

    Text that happens to spell one of fairseq's specials, such as `<pad>`, is unknown text to it.
    """
    names = (pieces.id_to_piece(index) for index in range(pieces.get_piece_size()))
    return [UNKNOWN if name in FAIRSEQ_SPECIALS else name for name in names]


def _train(vocab_size: int, folder: Path, texts: list[Path]) -> None:
    total = sum(1 for text in texts for _ in read_lines(text))
    step = -(-total // MAX_LINES)
    lines = (line for text in texts for line in read_lines(text))
    with chdir(folder):  # the model stores the prefix: a name alone is the same everywhere
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=islice(lines, 0, None, step),
            model_prefix=Path(MODEL_NAME).stem,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=1.0,
            normalization_rule_name="nmt_nfkc",
            max_sentence_length=1 << 16,
            num_threads=1,
        )


def _in_words(error: RuntimeError) -> str:
    """sentencepiece's complaint about the size in terms of our setting."""
    if match := re.search(r"<= (\d+)", str(error)):
        return f"vocab_size is too large: this text has at most {match[1]} pieces"
    if match := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
        return f"vocab_size is too small: the characters of this text need at least {match[1]}"
    return str(error)


if __name__ == "__main__":
    try:
        _train(int(sys.argv[1]), Path(sys.argv[2]), [Path(name).resolve() for name in sys.argv[3:]])
    except RuntimeError as problem:
        sys.exit(f"error: {_in_words(problem)}")
