"""When two questions are the same one, and how much of one is found in others.

A question's *key* leaves out what changes the look and not the problem: case, white space, dollar signs, LaTeX spacing
and sizes, the last full stop. Its *words* are the letters and digits of that, in order; n words in a row are an n-gram.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator

DIGEST_BYTES = 12
"""2^96 of them: among a million questions two have the same digest by accident with a chance of 1e-17."""

_LOOKS = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|limits|big|Big|bigg|Bigg|quad|qquad)(?![a-zA-Z])|\\[,;:! ]|[$~\s]"
)
_SAME = ((re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"), (re.compile(r"\\l?dots(?![a-zA-Z])"), "..."))
_SIGNS = str.maketrans("", "", "$~")
_WORD = re.compile(r"[^\W_]+")


def key_of(question: str) -> str:
    r"""The question without what is only its look.

    >>> key_of(r"Find $\dfrac{1}{2} + x$ .") == key_of(r"find \frac{1}{2}+x")
    True
    >>> key_of("Find x^2") == key_of("Find x^3")
    False
    """
    text = unicodedata.normalize("NFKC", question)
    if "\\" in text:
        for pattern, replacement in _SAME:
            text = pattern.sub(replacement, text)
        text = _LOOKS.sub("", text)
    # What the pattern does to a text without LaTeX, several times as fast.
    return "".join(text.translate(_SIGNS).split()).casefold().rstrip(".")


def digest_of(text: str) -> bytes:
    """DIGEST_BYTES that stand for a text; a lone surrogate is a text too."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def words_of(question: str) -> list[str]:
    r"""Letters and digits in a row, in lower case.

    >>> words_of(r"If $x_1 = \frac{3}{4}$, find $y$.")
    ['if', 'x', '1', 'frac', '3', '4', 'find', 'y']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", question).casefold())


def ngrams_of(question: str, n: int) -> Iterator[int]:
    """A number for each n words in a row; none where the question is shorter."""
    words = words_of(question)
    for start in range(len(words) - n + 1):
        yield int.from_bytes(digest_of(" ".join(words[start : start + n]))[:8], "little")


class EvalQuestionIndex:
    """The questions of the evaluation sets, which a training set must not have.

    n: words of an n-gram. A question *overlaps* by the share of its n-grams that these questions have.
    """

    def __init__(self, questions: Iterable[str], n: int) -> None:
        self.n = n
        self.keys: set[bytes] = set()
        self.ngrams: set[int] = set()
        for question in questions:
            self.keys.add(digest_of(key_of(question)))
            self.ngrams.update(ngrams_of(question, n))

    def has(self, question: str) -> bool:
        """Whether it is one of them, but for its look."""
        return bool(self.keys) and digest_of(key_of(question)) in self.keys

    def overlap(self, question: str) -> float:
        """Share of its n-grams, in [0, 1]; 0 where it has none."""
        if not self.ngrams:
            return 0.0
        found = [ngram in self.ngrams for ngram in ngrams_of(question, self.n)]
        return sum(found) / len(found) if found else 0.0
