from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from verl_aer import Groups
from verl_aer.parts.allocation import Historical
from verl_aer.rollouts.question_memory import (
    Observation,
    Question,
    QuestionMemory,
    QuestionMemoryConfig,
    question_id,
    remember,
)

CONFIG = QuestionMemoryConfig(ema_up=0.2, ema_down=0.05)


def groups_of(accuracy: list[float], size: int = 4) -> Groups:
    prompts = len(accuracy)
    return Groups(np.array(accuracy), np.full(prompts, size), np.arange(prompts))


def test_an_accuracy_rises_faster_than_it_falls():
    memory = QuestionMemory().after([Observation("x", 0.5, 4, None)], 1, CONFIG)
    assert memory.questions["x"] == Question(0.5, None, 1)
    risen = memory.after([Observation("x", 1.0, 4, 30)], 2, CONFIG)
    assert risen.questions["x"].accuracy == pytest.approx(0.8 * 0.5 + 0.2 * 1.0)
    fallen = memory.after([Observation("x", 0.0, 4, None)], 2, CONFIG)
    assert fallen.questions["x"].accuracy == pytest.approx(0.95 * 0.5)
    # A value: what it was made from is as it was.
    assert memory.questions["x"].accuracy == 0.5


def test_the_shortest_correct_response_is_kept():
    memory = QuestionMemory()
    for step, shortest in enumerate([None, 30, 40, 20, None], 1):
        memory = memory.after([Observation("x", 0.5, 4, shortest)], step, CONFIG)
    assert memory.questions["x"] == Question(0.5, 20, 5)


def test_a_question_that_comes_up_twice_is_one_of_all_its_rollouts():
    known = QuestionMemory({"x": Question(0.5, None, 1)})
    twice = known.after([Observation("x", 1.0, 2, 9), Observation("x", 0.25, 4, 7)], 2, CONFIG)
    # (2 + 1) of 6 are correct: as accurate as before, one update and not two.
    assert twice.questions["x"] == Question(0.5, 7, 2)
    turned = known.after([Observation("x", 0.25, 4, 7), Observation("x", 1.0, 2, 9)], 2, CONFIG)
    assert turned == twice


def test_beyond_its_capacity_the_longest_unseen_are_forgotten():
    config = QuestionMemoryConfig(max_questions=2)
    memory = QuestionMemory()
    for step, name in enumerate(["a", "b", "a", "c"], 1):
        memory = memory.after([Observation(name, 0.5, 4, None)], step, config)
    assert set(memory.questions) == {"a", "c"}
    both = QuestionMemory().after([Observation(name, 0.5, 4, None) for name in "cab"], 1, config)
    assert set(both.questions) == {"a", "b"}
    # Whichever came first, of equal ones it is the id that decides.
    turned = QuestionMemory({name: Question(0.5, None, 1) for name in "cba"}).after([], 2, config)
    assert set(turned.questions) == {"a", "b"}


def test_groups_know_their_questions_past():
    memory = QuestionMemory({"x": Question(0.5, 20, 1), "y": Question(1.0, None, 1)})
    after, groups = remember(
        memory, groups_of([1.0, 0.5, 0.0]), ["x", "y", "z"], np.array([10.0, 40.0, np.nan]), 2, CONFIG
    )
    assert groups.history == pytest.approx([0.6, 0.975, 0.0])
    assert groups.history_mean == after.mean_accuracy == pytest.approx(np.mean([0.6, 0.975, 0.0]))
    # L_x is the one from before the step; the step's own where there was none.
    assert groups.shortest[:2].tolist() == [20.0, 40.0]
    assert np.isnan(groups.shortest[2])
    assert after.questions["x"].shortest == 10


def test_questions_below_the_mean_of_all_get_more():
    groups = Groups(np.zeros(3), np.full(3, 4), np.arange(3), history=np.array([0.2, 0.5, 0.9]), history_mean=0.5)
    # At the mean is not below it.
    assert Historical().weights(groups).tolist() == [5.0, 1.0, 1.0]
    assert Historical(hard_weight=1.0, easy_weight=0.0).weights(groups).tolist() == [1.0, 0.0, 0.0]


def test_an_id_is_stable_and_of_the_question():
    prompt = [{"role": "user", "content": "1 + 1?"}]
    first = question_id({}, "math", prompt, "question_id")
    assert first == question_id(None, "math", [{"content": "1 + 1?", "role": "user"}], "question_id")
    assert first != question_id({}, "other", prompt, "question_id")
    assert question_id({"question_id": 0}, "math", prompt, "question_id") == "0"
    assert question_id({"mine": "a"}, "math", prompt, "mine") == "a"


IMAGE = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
PARTS = {
    "image": (IMAGE, IMAGE.copy(), Image.new("RGB", (2, 2))),
    "palette": (IMAGE.quantize(2), IMAGE.quantize(2).copy(), Image.new("P", (2, 2))),
    "bytes": (b"\x00\xff", bytearray(b"\x00\xff"), b"\x00"),
    "array": (np.arange(5000), np.arange(5000), np.arange(5000) * (np.arange(5000) != 2500)),
    "type": (np.zeros(2, np.int16), np.zeros(2, np.int16), np.zeros(1, np.int32)),
    "number": (np.float32(0.5), 0.5, np.float32(0.25)),
    "messages": (np.array([{"role": "user"}], dtype=object), [{"role": "user"}], [{"role": "system"}]),
}
"""A part of a prompt, another object of the same content, and one of other content."""


@pytest.mark.parametrize("name", PARTS)
def test_what_a_prompt_holds_is_known_by_its_content(name):
    first, same, other = (
        question_id({}, "math", [{"role": "user", "content": [{"type": "image", "image": part}]}], "question_id")
        for part in PARTS[name]
    )
    assert first == same != other


def test_an_image_is_known_after_it_was_sent_to_another_process():
    png = io.BytesIO()
    IMAGE.save(png, format="PNG")
    opened, sent = Image.open(png), pickle.loads(pickle.dumps(Image.open(png)))
    assert question_id({}, "math", opened, "question_id") == question_id({}, "math", sent, "question_id")


def test_what_has_no_content_asks_for_an_id():
    prompt = [{"role": "user", "content": object()}]
    with pytest.raises(
        ValueError, match=r"it holds a object.*Add extra_info\.mine .*entropy\.question_memory\.question_key"
    ):
        question_id({}, "math", prompt, "mine")
    assert question_id({"mine": 3}, "math", prompt, "mine") == "3"
