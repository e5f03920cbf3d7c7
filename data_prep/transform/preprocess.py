"""fairseq-preprocess with a dictionary that looks up a line at a time.

    python -m data_prep.transform.preprocess FOLDER --task data_prep ...

It takes all options of fairseq-preprocess and works in FOLDER: fairseq divides the path of a text
at every comma, and a name alone has none. fairseq's own encode_line sets one element of a tensor
after the other, which is most of what the command costs. The task's
dictionary gives the same tensors (a test compares the bytes).
"""

import os
import sys
from collections.abc import Callable

import torch
from fairseq.data import Dictionary
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from fairseq.tokenizer import tokenize_line
from fairseq_cli.preprocess import cli_main

TASK = "data_prep"


class LineDictionary(Dictionary):
    """fairseq's dictionary; a line of known words becomes a tensor in one step."""

    def encode_line(
        self,
        line: str,
        line_tokenizer: Callable[[str], list[str]] = tokenize_line,
        add_if_not_exist: bool = True,
        consumer: Callable[[str, int], None] | None = None,
        append_eos: bool = True,
        reverse_order: bool = False,
    ) -> torch.Tensor:
        """The numbers of the words, int32 [words], and of the end of the sentence.

        It differs from fairseq's in one point: `consumer`, with which the command counts unknown
        words, is not called for lines that have no unknown word.
        """
        if not (add_if_not_exist or reverse_order):
            # What tokenize_line does, in one step: any white space divides words.
            words = line.split() if line_tokenizer is tokenize_line else line_tokenizer(line)
            numbers = list(map(self.indices.get, words))
            if None not in numbers:
                return torch.IntTensor(numbers + [self.eos_index] * append_eos)
        return super().encode_line(
            line, line_tokenizer, add_if_not_exist, consumer, append_eos, reverse_order
        )


@register_task(TASK, dataclass=TranslationConfig)
class PreprocessTask(TranslationTask):
    """Translation whose dictionary is `LineDictionary`."""

    @classmethod
    def load_dictionary(cls, filename: str) -> LineDictionary:
        """The dictionary in the file `filename`."""
        return LineDictionary.load(filename)


if __name__ == "__main__":
    os.chdir(sys.argv.pop(1))
    cli_main()
