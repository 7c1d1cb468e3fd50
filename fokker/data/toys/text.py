"""Real English: Python's Zen and manual and scikit-learn's data set descriptions, as characters or words."""

import contextlib
import io
import re
from collections import Counter
from functools import lru_cache
from importlib import import_module, resources

import numpy as np
import torch
from numpy.typing import NDArray

from fokker.data.draws import SPLITS, Draw, Floats
from fokker.data.source import Arrays
from fokker.errors import FokkerError, unknown

ALPHABET = " abcdefghijklmnopqrstuvwxyz.,'-"
LEVELS = ("char", "word")
UNKNOWN = "<unk>"
_TEST_SHARE = 0.1
# coarse alphabets for exact enumeration: the classes of characters
COARSE = {2: (" .,'-", "*"), 3: (" .,'-", "aeiouy", "*"), 4: (" ", "aeiouy", "*", ".,'-")}
COARSE_NAMES = {2: ("gap", "letter"), 3: ("gap", "vowel", "consonant"), 4: ("space", "vowel", "consonant", "stop")}


@lru_cache(maxsize=1)
def corpus() -> str:
    """The text in lower case and the 31 characters of ALPHABET, some 300,000 of them; tables, code and markup are left out.

    The words are those of the installed Python and scikit-learn, so another version may differ; the fingerprint tells.
    """
    folder = resources.files("sklearn.datasets.descr")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".rst")), key=lambda f: f.name)
    with contextlib.redirect_stdout(io.StringIO()):  # the module prints itself when it is first imported
        this = import_module("this")
    manual = import_module("pydoc_data.topics").topics
    pages = ["".join(this.d.get(c, c) for c in this.s), *(manual[k] for k in sorted(manual))]
    pages += [file.read_text(encoding="utf-8") for file in files]
    seen: set[str] = set()
    kept: list[str] = []
    for paragraph in (part for page in pages for part in re.split(r"\n\s*\n", page)):
        plain = re.sub(r":\w+:|`|\*|_|\"|<[^>]*>|https?://\S+|\[\d+\]", "", paragraph)
        plain = re.sub(r"\s+", " ", plain).strip().lower()
        if plain not in seen and _is_prose(plain):
            seen.add(plain)
            kept.append(plain)
    return re.sub(r"\s+", " ", "".join(c if c in ALPHABET else " " for c in " ".join(kept))).strip()


def _is_prose(paragraph: str) -> bool:
    letters = sum(c in ALPHABET for c in paragraph)
    sentence = len(paragraph.split()) >= 8 and paragraph[0].isalpha() and "..." not in paragraph
    return sentence and letters >= 0.94 * len(paragraph)


def build(
    n: int = 2000,
    seed: int = 0,
    split: str = "train",
    level: str = "char",
    length: int = 64,
    vocabulary: int = 512,
    symbols: int | None = None,
) -> Arrays:
    """x (length,) int64 tokens below len(d.vocabulary): windows at random places; the strings are texts["text"].

    level "char": ALPHABET, or with symbols = 2, 3 or 4 its coarse classes (gap, letter; vowel, consonant; space, stop), small
    enough to enumerate exactly. "word": the `vocabulary` - 1 most frequent words and <unk>. The last tenth of the text is
    the test split; no window crosses into it.
    """
    if level not in LEVELS:
        raise unknown("level", level, LEVELS)
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if symbols is not None and (symbols not in COARSE or level != "char"):
        raise FokkerError(f"symbols={symbols} at level {level!r}; give 2, 3 or 4 at level 'char'")
    tokens, names = stream(level, vocabulary, symbols)
    cut = round(len(tokens) * (1 - _TEST_SHARE))
    low, high = {"train": (0, cut), "test": (cut, len(tokens)), "all": (0, len(tokens))}[split]
    places = high - low - length + 1
    if n < 1 or length < 1 or places < 1:
        raise FokkerError(f"n={n} windows of length={length}; the {split} split has {high - low} tokens")
    starts = low + (Draw("text", seed, np.arange(n)).uniform(f"place-{split}") * places).astype(np.int64)
    x = tokens[starts[:, None] + np.arange(length)]
    between = "" if level == "char" and symbols is None else " "
    texts = [between.join(names[t] for t in row) for row in x]
    about, tensors = f"English text, {level} level", {"x": torch.from_numpy(x)}
    return Arrays(tensors, "text", about, vocabulary=names, texts={"text": texts}, bounds=None)


def stream(
    level: str = "char", vocabulary: int = 512, symbols: int | None = None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The whole text as tokens, and the name of each token."""
    text = corpus()
    if level == "word":
        words = re.findall(r"[a-z']+", text)
        common = [w for w, _ in sorted(Counter(words).items(), key=lambda item: (-item[1], item[0]))[: vocabulary - 1]]
        places = {w: k + 1 for k, w in enumerate(common)}
        return np.array([places.get(w, 0) for w in words], dtype=np.int64), (UNKNOWN, *common)
    if symbols is None:
        return np.array([ALPHABET.index(c) for c in text], dtype=np.int64), tuple(ALPHABET)
    rest = COARSE[symbols].index("*")
    classes = [next((k for k, members in enumerate(COARSE[symbols]) if c in members), rest) for c in ALPHABET]
    return np.array(classes, dtype=np.int64)[stream()[0]], COARSE_NAMES[symbols]


def chain(symbols: int = 4) -> tuple[Floats, Floats]:
    """The order-1 Markov chain of the coarse text: probabilities of a symbol (k,) and transitions (k, k), rows sum to 1."""
    if symbols not in COARSE:
        raise FokkerError(f"symbols={symbols}; give 2, 3 or 4")
    tokens, _ = stream("char", symbols=symbols)
    counts = np.ones((symbols, symbols))
    np.add.at(counts, (tokens[:-1], tokens[1:]), 1.0)
    first = np.bincount(tokens, minlength=symbols).astype(np.float64)
    return first / first.sum(), counts / counts.sum(axis=1, keepdims=True)
