"""What `verl-aer methods` says of each setting comes from the docstring of its part."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

import pytest

from verl_aer import EntropyConfig, get_part, method_names, part_names
from verl_aer.config.schema import CorrectnessConfig, WatchdogConfig
from verl_aer.parts.base import ROLES
from verl_aer.parts.target import Band
from verl_aer.reports.method_catalog import explanation, rule, setting_texts
from verl_aer.rollouts.question_memory import QuestionMemoryConfig

PARTS = [get_part(kind, name) for kind in ROLES for name in part_names(kind)]


@pytest.mark.parametrize("settings", [*PARTS, CorrectnessConfig, QuestionMemoryConfig, WatchdogConfig])
def test_every_setting_has_a_text_and_every_text_a_setting(settings):
    texts = setting_texts(settings)
    assert sorted(texts) == sorted(field.name for field in dataclasses.fields(settings))
    assert all(len(text.split()) > 2 for text in texts.values())


def test_the_settings_of_every_method_have_a_text():
    with_default = {"aggregation", "correctness", "question_memory", "on_missing_state", "watchdog"}
    assert setting_texts(EntropyConfig).keys() == with_default


def test_a_class_has_the_texts_of_its_bases_and_may_replace_them():
    @dataclass
    class Narrow(Band):
        """Near.

        A rule.

        Args:
            low: another text
                of two lines.

        >>> 1
        1
        """

    assert setting_texts(Narrow) == {**setting_texts(Band), "low": "another text of two lines."}
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
