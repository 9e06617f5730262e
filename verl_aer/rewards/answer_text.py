"""Extract the answer from a response, and normalize its notation.

`find_answer` searches these forms in order, and takes the last occurrence of the first form that occurs:

    1. `\\boxed{…}` or `\\fbox{…}` with balanced braces; an incomplete last box is no answer
    2. `#### …`, to the end of the line (GSM8K)
    3. `Final answer: …` or `… the final answer is …`, in upper or lower case
    4. `Answer: …` or `the answer is …`, in upper or lower case
    5. the whole response, if it is one line of at most 100 characters

If the text after 3 or 4 starts with a formula (`$…$`, `\\(…\\)`, `\\[…\\]`), the answer is this formula. Otherwise it
is the rest of the sentence, after the last "is".
In a response with `</think>` only the text after the last one is searched.

`normalize` gives equal notations the same form and keeps unknown notation unchanged. It never evaluates.
"""

from __future__ import annotations

import re

SEARCHED_CHARACTERS = 100_000
"""Length of the end of a response that is searched."""

LONGEST_BARE_RESPONSE = 100
"""Maximum characters of a response that is an answer as a whole."""

_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_HASHES = re.compile(r"####[ \t]*([^\n]*)")
_FINAL_ANSWER = re.compile(r"final answer\b[*_]*(?:\s*:|\s+is\b:?)[*_]*\s*", re.IGNORECASE)
_ANSWER = re.compile(r"\banswer\b[*_]*(?:\s*:|\s+is\b:?)[*_]*\s*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|[.?](?=\s|$)")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(?!\d[\d,.]*(?:\s|$))(.+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)

_UNIT_AFTER_FORMULA = re.compile(r"\s*(?:\\?%|percent\b|[a-zA-Z]{1,12})(?=[.\s*]*(?:$|\n))")
_IS = re.compile(r"\b(?:is|are|equals)\b:?")


def _boxed(text: str) -> str | None:
    """Return the contents of the last box; '' if it is incomplete, None without a box."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    match = _BOX.match(text, start) if start >= 0 else None
    if match is None:
        return None
    if not text.startswith("{", match.end()):
        return text[match.end() :].split(None, 1)[0].rstrip(".,$") if text[match.end() :].strip() else ""
    depth = 0
    for brace in re.finditer(r"(?<!\\)(?:\\\\)*([{}])", text[match.end() :]):
        depth += 1 if brace.group(1) == "{" else -1
        if depth == 0:
            return text[match.end() + 1 : match.end() + brace.end() - 1]
    return ""


def _leading_formula(text: str) -> str | None:
    """Return the formula at the start of `text`, with a percent sign or unit at the end of its line."""
    formula = _FORMULA.match(text)
    if formula is None:
        return None
    unit = _UNIT_AFTER_FORMULA.match(text, formula.end())
    return next(group for group in formula.groups() if group is not None) + (unit.group() if unit else "")


def _after_marker(text: str, marker: re.Pattern[str]) -> str | None:
    """Return the answer after the last `marker`."""
    end = None
    for match in marker.finditer(text):
        end = match.end()
    if end is None:
        return None
    rest = text[end:].lstrip("*_ \t")
    formula = _leading_formula(rest)
    if formula is not None:
        return formula
    # "Final answer: the largest n is 34."
    last_clause = _IS.split(_SENTENCE_END.split(rest, maxsplit=1)[0])[-1].strip("*_ \t")
    return _leading_formula(last_clause) or last_clause


def find_answer(response: str) -> str:
    """Find the answer in a response; '' if there is none."""
    tail = response[-SEARCHED_CHARACTERS:].rsplit("</think>", 1)[-1]
    boxed = _boxed(tail)
    if boxed is not None:
        return boxed.strip()
    hashes = _HASHES.findall(tail)
    if hashes:
        return hashes[-1].strip()
    for marker in (_FINAL_ANSWER, _ANSWER):
        announced = _after_marker(tail, marker)
        if announced is not None:
            return announced.strip()
    bare = tail.strip()
    return bare if len(bare) <= LONGEST_BARE_RESPONSE and "\n" not in bare else ""


_CHARACTERS = str.maketrans(
    {
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
        **dict(zip("−–—‐‑﹣－", "-" * 7, strict=True)),
        **dict(zip("，（）［］｛｝＝＋／．：％＜＞", ",()[]{}=+/.:%<>", strict=True)),
        **dict(zip("“”‘’", "\"\"''", strict=True)),
        **dict.fromkeys("\xa0\u2002\u2003\u2009\u200a\u202f\u3000\t\n\r\x0c\x0b", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "∙": r"\cdot ",
        "×": r"\times ",
        "÷": "/",
        "⁄": "/",
        "∕": "/",
        "≤": r"\le ",
        "⩽": r"\le ",
        "≥": r"\ge ",
        "⩾": r"\ge ",
        "≠": r"\ne ",
        "≈": r"\approx ",
        "±": r"\pm ",
        "∞": r"\infty ",
        "π": r"\pi ",
        "θ": r"\theta ",
        "α": r"\alpha ",
        "β": r"\beta ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∈": r"\in ",
        "∅": r"\emptyset ",
        "ℝ": r"\mathbb{R}",
        "°": r"^\circ",
        "²": "^{2}",
        "³": "^{3}",
        "½": r"\frac{1}{2}",
        "⅓": r"\frac{1}{3}",
        "⅔": r"\frac{2}{3}",
        "¼": r"\frac{1}{4}",
        "¾": r"\frac{3}{4}",
    }
)

_UNIT_WORD = (
    r"(?:(?:square|sq\.?|cubic|cu\.?)\s+)?"
    r"(?:[kcmdµ]?m|met(?:er|re)s?|(?:kilo|centi|milli)met(?:er|re)s?|inch(?:es)?|in|f(?:ee|oo)?t|y(?:ar)?ds?|miles?"
    r"|[km]?g|(?:kilo)?grams?|pounds?|lbs?|ounces?|oz|tons?|m?[lL]|lit(?:er|re)s?|gallons?"
    r"|s|secs?|seconds?|mins?|minutes?|h|hrs?|hours?|days?|weeks?|months?|years?"
    r"|dollars?|cents?|euros?|yuan|rupees?|degrees?|radians?|units?|mph|km/h|m/s|ft/s"
    r"|people|students?|ways|points?|apples?|books?)"
)
_UNIT_POWER = r"(?:\s*\^\s*(?:\{\s*[23]\s*\}|[23]))?"
_TEXT_COMMAND = r"\\(?:text(?:bf|it|rm|normal|sf|tt)?|mathrm|mathbf|mathit|mathsf|mbox|hbox)\s*"
_TRAILING_TEXT_UNIT = re.compile(rf"(?<=[\d}})\]a-zA-Z])\s*{_TEXT_COMMAND}\{{[^{{}}]*\}}{_UNIT_POWER}$")
_JOINED_BY_TEXT = re.compile(rf"(?:{_TEXT_COMMAND}\{{[^{{}}]*\}})?\s*$")
_BARE_UNIT = re.compile(rf"^(.*[\d}})])(?:\s+|(?=[a-zA-Z]{{2}})){_UNIT_WORD}(?:\s+per\s+{_UNIT_WORD})?{_UNIT_POWER}$")
_THIN_SEPARATORS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:\{,\}|\\,|\\!,|,\\!\s?|\\ )\d{3})+(?![\d,]|\{,\})")
_SEPARATORS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3}|(?<=\d) \d{3})+(?![\d,])")
_BRACKET = re.compile(r"[(\[]|\\\{")
_PLAIN_TEXT = re.compile(rf"^{_TEXT_COMMAND}\{{([^{{}}]*)\}}$")

_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\s+", " "),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?=[\s()\[\]|.\\/])", ""),
        (r"\\(?:displaystyle|textstyle|quad|qquad|limits)(?![a-zA-Z])", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:leq|leqslant)(?![a-zA-Z])", r"\\le"),
        (r"\\(?:geq|geqslant)(?![a-zA-Z])", r"\\ge"),
        (r"\\neq(?![a-zA-Z])", r"\\ne"),
        (r"\\(?:varnothing|empty)(?![a-zA-Z])", r"\\emptyset"),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\langle(?![a-zA-Z])", "("),
        (r"\\rangle(?![a-zA-Z])", ")"),
        (r"\\(?:mathrm|text|rm)\s*\{\s*([ei])\s*\}", r"\1"),
        (r"\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![a-zA-Z])", ""),
        (r"\\\$|\$|[€£¥]|\\(?:euro|pounds)(?![a-zA-Z])", ""),
        (r"(?<!\\)%", r"\\%"),
        (r"\s*(?:\\text\s*\{\s*)?\b(?:percent|percentage|pct)\b(?:\s*\})?", r"\\%"),
        (r"√\s*\(([^()]*)\)|√\s*(\d+|[a-zA-Z])|(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1\2\3}"),
        (r"\\sqrt\s*(\d)(?!\d)", r"\\sqrt{\1}"),
        (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
        (r"\*\*", "^"),
        (r"(?<!\\)\\[;:!]", ""),
        (r"(?<!\\)\\[, ]|~", " "),
        (r"\s+", " "),
    )
)


def _without_separators(match: re.Match[str]) -> str:
    return re.sub(r"\D", "", match.group())


def _without_unit(text: str) -> str:
    shorter = _TRAILING_TEXT_UNIT.sub("", text)
    bare = _BARE_UNIT.match(shorter)
    return bare.group(1) if bare else shorter


def normalize(text: str) -> str:
    """Normalize an answer or a ground truth. A text that is only `\\text{…}` keeps its words."""
    text = text.translate(_CHARACTERS).strip()
    text = re.sub(r"^\*\*(.*)\*\*$", r"\1", text).strip()
    for opening, closing in (("\\(", "\\)"), ("\\[", "\\]")):
        if text.startswith(opening) and text.endswith(closing):
            text = text[2:-2].strip()
    # Before white space is normalized: `1\,234` is one number, `1, 234` is two.
    text = _THIN_SEPARATORS.sub(_without_separators, text)
    if not _BRACKET.search(text):
        # In `(100,200)` the comma separates two numbers.
        text = _SEPARATORS.sub(_without_separators, text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(".;:,").strip()
    words = _PLAIN_TEXT.match(text)
    return words.group(1).strip() if words else _without_unit(text).strip()
