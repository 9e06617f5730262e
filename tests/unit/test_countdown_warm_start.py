"""Countdown's warm start: its training data, its cache and its report."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from examples.countdown.model import build_tokenizer
from examples.countdown.reward import is_correct
from examples.countdown.rollouts import Competence
from examples.countdown.warm_start import IGNORED, WarmStartSettings, demonstrations, encode, train, warm_start


def test_only_the_answer_and_its_end_are_learnt():
    tokenizer = build_tokenizer()
    drawn = demonstrations(np.random.default_rng(0), WarmStartSettings(batch=8), frozenset())
    ids, labels = encode(drawn, tokenizer)
    for row, label, (prompt, answer) in zip(ids, labels, drawn, strict=True):
        learnt = label != IGNORED
        assert torch.equal(row[learnt], label[learnt])
        assert tokenizer.decode(label[learnt]) == f"{answer}<eos>"
        assert tokenizer.decode(row[~learnt], skip_special_tokens=True) == prompt


def test_wrong_share_is_the_share_of_random_answers():
    rng = np.random.default_rng(0)

    def share_right(wrong_share: float) -> float:
        drawn = demonstrations(rng, WarmStartSettings(batch=400, wrong_share=wrong_share), frozenset())
        return sum(is_correct(answer, prompt.removesuffix(":")) for prompt, answer in drawn) / len(drawn)

    assert share_right(0.0) == 1.0
    # All random: level 2 is right in 1/3 of the cases or, as + and * commute, a little more; the others in
    # under 1/5 and 1/10. The mean is then under 0.25, and a half of random answers leaves 0.5 to 0.65.
    assert share_right(1.0) < 0.25
    assert share_right(0.5) == pytest.approx(0.575, abs=0.08)


def test_learning_rate_rises_then_falls_to_zero():
    settings = WarmStartSettings(steps=100, learning_rate=1.0, warmup_steps=10)
    # step 5: 5/10 · (1 + cos(π/20))/2 = 0.5 · 0.99384; step 50: (1 + cos(π/2))/2 = 0.5.
    assert settings.learning_rate_at(5) == pytest.approx(0.49692, abs=1e-5)
    assert settings.learning_rate_at(50) == pytest.approx(0.5)
    assert settings.learning_rate_at(100) == pytest.approx(0.0)


@pytest.fixture(scope="module")
def tiny():
    return WarmStartSettings(seed=0, steps=2, batch=8)


def test_training_is_deterministic(tiny):
    first, again = (train(tiny)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_finished_model_is_kept_and_other_settings_replace_it(tmp_path, tiny):
    out = tmp_path / "model"
    assert warm_start(out, tiny)
    written = (out / "model.safetensors").stat().st_mtime_ns
    assert not warm_start(out, tiny)
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    assert warm_start(out, WarmStartSettings(seed=1, steps=2, batch=8))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_report_by_level():
    # Level 2: accuracies 1 and 0.5, mean 0.75, both solved. Level 3: unsolved. One hard, one easy.
    competence = Competence(np.array([2, 2, 3]), np.array([1.0, 0.5, 0.0]), samples=8, entropy=0.5)
    lines = competence.report().splitlines()[2:]
    assert lines[1].split() == ["2", "2", "0.750", "1.000"]
    assert lines[2].split() == ["3", "1", "0.000", "0.000"]
    assert lines[3].split() == ["all", "3", "0.500", "0.667"]
    assert "entropy 0.500 nats/token; group accuracy <= 0.25: 33%, >= 0.75: 33%" in lines[4]
