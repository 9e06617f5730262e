"""Detect equal questions, and measure how much of a question occurs in others.

The *key* of a question ignores differences in its look: case, white space, dollar signs, LaTeX spacing and sizes, and
the final period. Its *words* are its runs of letters and digits. An n-gram is n consecutive words.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator

DIGEST_BYTES = 12
"""There are 2^96 digests. The chance that any two of a million questions share one is 1e-17."""

_LOOKS = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|limits|big|Big|bigg|Bigg|quad|qquad)(?![a-zA-Z])|\\[,;:! ]|[$~\s]"
)
_SAME = ((re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"), (re.compile(r"\\l?dots(?![a-zA-Z])"), "..."))
_SIGNS = str.maketrans("", "", "$~")
_WORD = re.compile(r"[^\W_]+")


def key_of(question: str) -> str:
    r"""Remove the differences in look from a question.

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
    # The same result for a text without LaTeX, several times as fast.
    return "".join(text.translate(_SIGNS).split()).casefold().rstrip(".")


def digest_of(text: str) -> bytes:
    """Hash a text to ``DIGEST_BYTES`` bytes. Lone surrogates are allowed."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def words_of(question: str) -> list[str]:
    r"""List the runs of letters and digits, in lower case.

    >>> words_of(r"If $x_1 = \frac{3}{4}$, find $y$.")
    ['if', 'x', '1', 'frac', '3', '4', 'find', 'y']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", question).casefold())


def ngrams_of(question: str, n: int) -> Iterator[int]:
    """Yield a number for each n consecutive words; nothing for a shorter question."""
    words = words_of(question)
    for start in range(len(words) - n + 1):
        yield int.from_bytes(digest_of(" ".join(words[start : start + n]))[:8], "little")


class EvalQuestionIndex:
    """The questions of the evaluation sets, which must not be in a training set.

    n: words per n-gram.
    """

    def __init__(self, questions: Iterable[str], n: int) -> None:
        self.n = n
        self.keys: set[bytes] = set()
        self.ngrams: set[int] = set()
        for question in questions:
            self.keys.add(digest_of(key_of(question)))
            self.ngrams.update(ngrams_of(question, n))

    def has(self, question: str) -> bool:
        """Check whether the question is in the evaluation sets, ignoring differences in look."""
        return bool(self.keys) and digest_of(key_of(question)) in self.keys

    def overlap(self, question: str) -> float:
        """Compute the share of the question's n-grams that occur in the evaluation sets; 0 if it has none."""
        if not self.ngrams:
            return 0.0
        found = [ngram in self.ngrams for ngram in ngrams_of(question, self.n)]
        return sum(found) / len(found) if found else 0.0
