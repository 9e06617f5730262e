"""Compare two answers with math-verify.

Only the verifier's process imports this module, because math-verify and SymPy take half a second. Texts are normalized
(`answer_text.normalize`). Changes to math-verify's rules:

    units          math-verify drops single letters as units, so that `2x+3t` would equal `2x+3`: switched off, because
                   our units are dropped already
    percent        p % equals p %, p and p / 100, as for plain numbers
    tiny numbers   math-verify rounds to six decimals and ignores differences below 1e-15: here numbers that differ by
                   more than one part in ten thousand are unequal
    intervals      `[3,1)` is empty in SymPy: here an interval with reversed ends is unreadable
    braces         `\\{1,2\\}` is unordered and `(1,2)` is ordered: unequal. A bare `1,2` may be either
    i              may be the imaginary unit, on both sides at once
"""

from __future__ import annotations

from typing import Any, NamedTuple

import sympy
from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify

MOST_RELATIVE_DIFFERENCE = 1e-4

_LATEX = LatexExtractionConfig(
    boxed_match_priority=-1,
    normalization_config=NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    ),
)
_WARM_UP = (
    (r"\frac{1}{2}+\sqrt{3}", r"\frac{1+2\sqrt{3}}{2}"),
    (r"x^{2}+2x+1", r"(x+1)^2"),
    (r"y=2x+1", r"2x-y=-1"),
    (r"x=1\text{ or }x=-2", r"-2,1"),
    (r"(1,\infty)\cup[-2,0)", r"x>1"),
    (r"\{1,2\}", r"\pm 1"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1&2\\3&5\end{bmatrix}"),
    (r"\frac{\pi}{4}", r"\arctan 1"),
    (r"2^{10}-\log_2 8", r"\sin x\cos x"),
    (r"\binom{5}{2}+3!", r"1.5\times 10^{3}"),
)
"""Pairs that warm up the parser's caches before a fork, so that no child has to."""


class Reading(NamedTuple):
    """A parsed text. `expression` is SymPy's, without the percent sign."""

    text: str
    expression: Any
    is_percent: bool


def _is_empty_by_mistake(text: str, expression: Any) -> bool:
    return expression is sympy.S.EmptySet and not any(sign in text for sign in (r"\emptyset", r"\{\}", r"\{ \}"))


def read(text: str) -> Reading | None:
    """Parse a text; None if math-verify cannot read it or it has no value (1/0)."""
    body = text.replace("\\%", "")
    found = parse(f"${body}$", [_LATEX], fallback_mode="no_fallback", parsing_timeout=None)
    if not found or _is_empty_by_mistake(text, found[0]):
        return None
    expression = found[0]
    if isinstance(expression, sympy.Basic) and expression.has(sympy.nan, sympy.zoo):
        return None
    return Reading(text, expression, body != text)


def _differ_in_size(truth: Any, answer: Any) -> bool:
    """Check whether both are numbers that differ by more than rounding."""
    if not all(isinstance(side, sympy.Expr) and side.is_number for side in (truth, answer)):
        return False
    sizes = [sympy.Abs(sympy.N(side)) for side in (truth, answer)]
    difference = sympy.Abs(sympy.N(truth - answer))
    if not all(size.is_Float or size.is_Integer for size in (*sizes, difference)):
        return False
    return bool(difference > MOST_RELATIVE_DIFFERENCE * max(sizes)) and sympy.simplify(truth - answer) != 0


def _same(truth: Any, answer: Any) -> bool:
    equal = verify(truth, answer, timeout_seconds=None, allow_set_relation_comp=True)
    return bool(equal) and not _differ_in_size(truth, answer)


def _is_ordered(reading: Reading) -> bool | None:
    """True for `(1,2)` and intervals, False for `\\{1,2\\}`, None if the notation does not tell."""
    if reading.text.startswith("\\{") and reading.text.endswith("\\}"):
        return False
    return True if isinstance(reading.expression, (sympy.Interval, sympy.Tuple)) else None


def _with_imaginary_unit(expression: Any) -> Any:
    if not isinstance(expression, (sympy.Basic, sympy.MatrixBase)):
        return expression
    return expression.subs({symbol: sympy.I for symbol in expression.free_symbols if symbol.name == "i"})


def _hundredth(expression: Any) -> Any:
    return expression / 100 if isinstance(expression, sympy.Expr) else expression


def equal(truth: Reading, answer: Reading) -> bool:
    """Check whether the answer equals the truth."""
    if {_is_ordered(truth), _is_ordered(answer)} == {True, False}:
        return False
    true, given = truth.expression, answer.expression
    if _same(true, given):
        return True
    if truth.is_percent != answer.is_percent:
        return _same(_hundredth(true) if truth.is_percent else true, _hundredth(given) if answer.is_percent else given)
    complex_true, complex_given = _with_imaginary_unit(true), _with_imaginary_unit(given)
    return (complex_true, complex_given) != (true, given) and _same(complex_true, complex_given)


def warm_up() -> None:
    """Read and compare the usual kinds of answers once."""
    for truth_text, answer_text in _WARM_UP:
        truth, answer = read(truth_text), read(answer_text)
        if truth is None or answer is None:
            raise RuntimeError(
                f"math-verify cannot read {truth_text!r} or {answer_text!r}: is another version installed?"
            )
        equal(truth, answer)
