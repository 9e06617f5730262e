"""Compare answers that need no algebra, within microseconds, in the caller's process.

`decide` returns True or False if the rules below decide, else None. Both texts are normalized
(`answer_text.normalize`).

    equal texts      equal, ignoring spaces without meaning
    choices          for a ground truth `A` or `(A)`, with a capital letter A to J: the letter of the answer, in upper
                     or lower case, bare, in parentheses, or `(A)` before more text
    words            two texts without formulas: equal letters and digits, in upper or lower case
    numerals         `204_5`, digits and base; an answer without base has the base of the ground truth, a ground truth
                     without base has base ten
    numbers          integers, decimals, `0.1\\overline{6}`, `a/b`, `\\frac{a}{b}`, mixed numbers, `1.5e3`, each with
                     or without a percent sign, compared as fractions. A decimal also equals a fraction that rounds to
                     it, if it has at least six decimals and four significant digits
    percent          p % equals p %, p and p / 100; without a sign, 50 and 0.5 differ
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

MOST_DIGITS = 400
"""Maximum characters of a number that is compared here. Longer ones go to the verifier."""

ROUNDED_DECIMALS = 6
ROUNDED_DIGITS = 4

_CHOICE_TRUTH = re.compile(r"\(?([A-J])\)?")
_CHOICE_ANSWER = re.compile(r"\(?([A-Ja-j])[).:]?|\(([A-Ja-j])\).+", re.DOTALL)
_IDLE_SPACE = re.compile(r"(?<!\w)\s+|\s+(?!\w)")
_TEXT_COMMAND = re.compile(r"\\(?:text|math)[a-z]*|\\mbox|[{}]")
_NUMERAL = re.compile(r"([0-9][0-9A-F]*)_\{?(?:\\text\{)?([0-9]{1,2}|two|three|eight|ten)\}?\}?")
_BASES = {"two": "2", "three": "3", "eight": "8", "ten": "10"}
_DECIMAL = re.compile(r"([+-]?)(\d+\.?\d*|\.\d+)(?:[eE]([+-]?\d{1,2}))?")
_RATIO = re.compile(r"([+-]?)(?:(\d+)[ ]?)?\\frac\{([+-]?\d+)\}\{([+-]?\d+)\}|([+-]?)(?:(\d+) )?(\d+)/(\d+)")
_WORD = re.compile(r"[^\W\d_]+")
_FORMULA_SIGN = re.compile(r"[\\^_=<>{}+*/|]|\d")
_FUNCTIONS = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "arcsin", "arccos", "arctan"}
    | {"log", "exp", "sqrt", "max", "min", "inf", "and", "or"}
)
_REPEATING = re.compile(r"([+-]?)(\d*)\.(\d*)\\(?:overline|bar|dot)\{?(\d+)\}?")


class PlainNumber(NamedTuple):
    """A number. `decimals` is None unless it is written with a decimal point."""

    value: Fraction
    decimals: int | None
    is_percent: bool


def _spaceless(text: str) -> str:
    return _IDLE_SPACE.sub("", text)


def _decimal(match: re.Match[str], is_percent: bool) -> PlainNumber:
    sign, digits, exponent = match.groups()
    power = int(exponent or 0)
    value = Fraction(digits) * Fraction(10) ** power * (-1 if sign == "-" else 1)
    decimals = len(digits.partition(".")[2]) - power if "." in digits else None
    return PlainNumber(value, decimals, is_percent)


def _repeating(match: re.Match[str], is_percent: bool) -> PlainNumber:
    sign, whole, once, again = match.groups()
    period = Fraction(int(again), 10 ** len(again) - 1)
    value = (int(whole + once or "0") + period) / 10 ** len(once)
    return PlainNumber(-value if sign == "-" else value, None, is_percent)


def _ratio(ratio: re.Match[str], is_percent: bool) -> PlainNumber | None:
    sign, whole, above, below = ratio.groups()[:4] if ratio.group(3) else ratio.groups()[4:]
    if int(below) == 0 or (whole is not None and (int(above) < 0 or int(below) < 0)):
        return None
    value = Fraction(int(whole or 0)) + Fraction(int(above), int(below))
    return PlainNumber(-value if sign == "-" else value, None, is_percent)


def read_number(text: str) -> PlainNumber | None:
    """Parse a number; None if `text` is not one."""
    if len(text) > MOST_DIGITS or not text.isascii():
        return None
    body = text.removesuffix("\\%").strip()
    is_percent = body != text.strip()
    decimal = _DECIMAL.fullmatch(body)
    if decimal:
        return _decimal(decimal, is_percent)
    repeating = _REPEATING.fullmatch(body)
    if repeating:
        return _repeating(repeating, is_percent)
    ratio = _RATIO.fullmatch(body)
    return _ratio(ratio, is_percent) if ratio else None


def _is_rounding(written: PlainNumber, exact: Fraction) -> bool:
    """Check whether the decimal `written` is `exact`, rounded half away from zero to as many decimals."""
    if written.decimals is None or written.decimals < ROUNDED_DECIMALS:
        return False
    scale = 10**written.decimals
    if abs(written.value) * scale < 10 ** (ROUNDED_DIGITS - 1):
        return False
    return int(abs(exact) * scale + Fraction(1, 2)) == abs(written.value) * scale and exact * written.value > 0


def _same_value(truth: PlainNumber, answer: PlainNumber) -> bool:
    if truth.value == answer.value:
        return True
    if truth.decimals is None:
        return _is_rounding(answer, truth.value)
    return answer.decimals is None and _is_rounding(truth, answer.value)


def same_number(truth: PlainNumber, answer: PlainNumber) -> bool:
    """Compare two numbers by the rules of numbers and percent."""
    if _same_value(truth, answer):
        return True
    if truth.is_percent and not answer.is_percent:
        return _same_value(truth._replace(value=truth.value / 100), answer)
    if answer.is_percent and not truth.is_percent:
        return _same_value(truth, answer._replace(value=answer.value / 100))
    return False


def _words(text: str) -> list[str] | None:
    """List the words of a text, in lower case; None for a formula."""
    if _FORMULA_SIGN.search(text):
        return None
    words = _WORD.findall(text.lower())
    # Products of variables are short or have no vowels, and names of functions belong to formulas.
    if not any(len(word) >= 3 and set(word) & set("aeiou") for word in words) or _FUNCTIONS & set(words):
        return None
    return words


def _decide_choice(truth: str, answer: str) -> bool | None:
    letter = _CHOICE_TRUTH.fullmatch(truth)
    if letter is None:
        return None
    chosen = _CHOICE_ANSWER.fullmatch(_TEXT_COMMAND.sub("", answer).strip())
    if chosen is None:
        return None
    return (chosen.group(1) or chosen.group(2)).upper() == letter.group(1)


def _decide_numeral(truth: str, answer: str) -> bool | None:
    true, given = _NUMERAL.fullmatch(truth), _NUMERAL.fullmatch(answer)
    if true is None and given is None:
        return None
    true_digits, true_base = true.groups() if true else (truth, "10")
    digits, base = given.groups() if given else (answer, true_base)
    return true_digits == digits and _BASES.get(true_base, true_base) == _BASES.get(base, base)


def is_plain(truth: str) -> bool:
    """Check whether a ground truth is a number, a numeral, a choice or words, so that math-verify need not read it."""
    return bool(read_number(truth) or _words(truth) or _CHOICE_TRUTH.fullmatch(truth) or _NUMERAL.fullmatch(truth))


def decide(truth: str, answer: str) -> bool | None:
    """Compare two texts. Returns None if the verifier must decide."""
    if _spaceless(truth) == _spaceless(answer):
        return True
    true_number, number = read_number(truth), read_number(answer)
    if true_number and number:
        return same_number(true_number, number)
    true_words, words = _words(truth), _words(answer)
    if true_words and words:
        return true_words == words
    choice = _decide_choice(truth, answer)
    return choice if choice is not None else _decide_numeral(_spaceless(truth), _spaceless(answer))
