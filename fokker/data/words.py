"""A closed vocabulary of words: captions to token ids and back."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fokker.errors import FokkerError, unknown

PAD = "<pad>"


class Words:
    """Tokens are places in `vocabulary`, whose first entry is the padding; texts are padded to `length` tokens."""

    def __init__(self, vocabulary: Sequence[str], length: int) -> None:
        self.vocabulary, self.length = tuple(vocabulary), length
        self._place = {word: k for k, word in enumerate(self.vocabulary)}

    def encode(self, texts: Sequence[str]) -> Tensor:
        """int64 (len(texts), length); raises FokkerError for a word that is not in the vocabulary, or too many of them."""
        tokens = torch.zeros((len(texts), self.length), dtype=torch.int64)
        for row, text in enumerate(texts):
            words = text.lower().split()
            if len(words) > self.length:
                raise FokkerError(f"{text!r} has {len(words)} words; at most {self.length} are read")
            for column, word in enumerate(words):
                if word not in self._place:
                    raise unknown("word", word, self.vocabulary[1:])
                tokens[row, column] = self._place[word]
        return tokens

    def decode(self, tokens: Tensor) -> list[str]:
        """The texts of int64 tokens (n, length), without padding."""
        return [" ".join(self.vocabulary[t] for t in row if t > 0) for row in tokens.tolist()]
