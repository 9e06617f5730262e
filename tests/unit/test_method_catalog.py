"""`verl-aer methods` prints the description and the bounds of each setting."""

from __future__ import annotations

import re

import pytest

from verl_aer import EntropyConfig, get_part, method_names, part_names
from verl_aer._settings import description, setting_names
from verl_aer.config.schema import WatchdogConfig
from verl_aer.parts.base import ROLES
from verl_aer.parts.target import Band
from verl_aer.reports.method_catalog import explanation, rule
from verl_aer.rollouts.groups import CorrectnessConfig
from verl_aer.rollouts.question_memory import QuestionMemoryConfig

PARTS = [get_part(role, name) for role in ROLES for name in part_names(role)]


@pytest.mark.parametrize("settings", [*PARTS, CorrectnessConfig, QuestionMemoryConfig, WatchdogConfig])
def test_every_setting_has_a_description(settings):
    texts = [description(settings, name) for name in setting_names(settings)]
    assert all(len(text.split()) > 2 and text.endswith(".") for text in texts)


def test_the_settings_of_every_method_have_a_description():
    described = {name for name in setting_names(EntropyConfig) if description(EntropyConfig, name)}
    assert described == {"aggregation", "correctness", "question_memory", "on_missing_state", "watchdog"}


def test_a_part_has_the_descriptions_of_its_bases_and_may_replace_them():
    class Narrow(Band):
        """Near.

        A rule.

        >>> 1
        1
        """

        low: float = 0.3
        """Another text
        of two lines."""

    assert description(Narrow, "low") == "Another text of two lines."
    assert description(Narrow, "high") == description(Band, "high")
    assert rule(Narrow) == "Near.\n\nA rule."


@pytest.mark.parametrize("name", method_names())
def test_a_method_is_explained_with_every_setting_and_its_text(name):
    text = explanation(name)
    shown = re.findall(r"^  entropy\.([a-z_.]+)=.*\n      \S", text, flags=re.MULTILINE)
    assert len(shown) == text.count("\n  entropy.")
    assert {"aggregation", "correctness.reward_key", "question_memory.ema_up", "on_missing_state"} < set(shown)
    assert "\n  entropy.correctness.threshold=null\n" in text
    for kind in ROLES:
        assert f"\n{kind}: " in text
