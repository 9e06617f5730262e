"""Known failures of entropy controllers and pitfalls of veRL, with a test for each."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

BUGS = {
    "bug 1": "a coefficient that has reached zero never rises again",
    "bug 2": "the coefficient moves once a micro-batch or accumulation step",
    "bug 3": "the controller sees the last micro-batch only",
    "bug 4": "evaluation moves the controller",
    "bug 5": "masked tokens (tool output) count",
    "bug 6": "the bonus depends on the policy loss's normalization",
    "bug 7": "a mean of rank means in place of sum over count",
    "bug 8": "state saved elsewhere, or not all of it",
    "bug 9": "a fused path that skips the guard",
    "bug 10": "an entropy without gradient",
    "bug 11": "values logged a micro-batch at a time, or a loss that mixes in the bonus",
}
"""Found in the review of another project's adaptive entropy coefficient."""

TRAPS = {
    "T3": "the trainer's name is a switch too",
    "T6": "a field is lost with the old batch meta",
    "T7": "a field on some rows only vanishes for all",
    "T8": "a column comes back with another shape",
    "T9": "padding rows are copies of real ones",
    "T10": "rows are not rollouts",
    "T11": "rewards are not accuracies",
    "T12": "columns come back in one of several containers",
    "T13": "metrics are reduced by what their names contain",
    "T15": "veRL's entropy metrics follow the loss's aggregation",
    "T16": "entropy is computed only when asked for",
    "T17": "two entropy terms add up",
    "T18": "config dataclasses that OmegaConf cannot take",
    "T19": "normalization by global counts",
    "T20": "the bonus's scale depends on the aggregation",
    "T21": "an aggregation that depends on the micro-batch's width",
    "T22": "rejection cuts the mask and not the token count",
    "T23": "bypass mode and local updates",
}
"""Numbered as in the project's design notes."""


def guarded() -> set[str]:
    text = "".join(path.read_text() for path in TESTS.rglob("test_*.py"))
    markers = re.findall(r"@pytest\.mark\.guards\(([^)]*)\)", text)
    return {name for marker in markers for name in re.findall(r'"([^"]+)"', marker)}


def test_each_known_bug_and_trap_has_a_test_of_its_own():
    assert guarded() == set(BUGS) | set(TRAPS)
