"""One real run for every method and kind of reward, and the death of a worker that ends it.

Each leg of the tour has three steps, the last of which starts from a checkpoint. The run trains adapters (LoRA), with
a reference policy and its KL loss, and importance weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Inputs, Training, trainings
from tests.e2e.test_failures_end_the_run import assert_a_killed_worker_ends_the_run
from tests.e2e.tour import LEGS, REWARD, STEPS, TOTAL_STEPS
from verl_aer import get_method, method_names, parse_entropy_config
from verl_aer.control.metrics import MetricsRow
from verl_aer.control.simulation import replay
from verl_aer.control.state_file import load_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
RUN_SECONDS = 1500
ONCE_AND_AFTER_THE_RESUME = 2


@pytest.fixture(scope="module")
def tour(inputs: Inputs, tmp_path_factory) -> Iterator[tuple[Training, Path]]:
    """The run, with all legs behind it and still training, and its checkpoints; tests/e2e/tour.py is its trainer."""
    folder = tmp_path_factory.mktemp("tour")
    checkpoints, reward = folder / "checkpoints", folder / "reward.py"
    reward.write_text(REWARD)
    with trainings(inputs, folder) as start:
        training = start(
            "tour",
            "none",
            f"reward.custom_reward_function.path={reward}",
            "trainer.v1.trainer_mode=aer_tour",
            "actor_rollout_ref.model.lora_rank=8",
            "actor_rollout_ref.model.lora_alpha=16",
            "actor_rollout_ref.rollout.load_format=safetensors",
            "actor_rollout_ref.actor.use_kl_loss=true",
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=4",
            "algorithm.rollout_correction.rollout_is=token",
            f"trainer.default_local_dir={checkpoints}",
            steps=TOTAL_STEPS,
            environment={"VERL_USE_EXTERNAL_MODULES": "tests.e2e.tour", "PYTHONPATH": str(ROOT)},
        )
        training.wait_for(lambda: len(training.steps) >= STEPS * len(LEGS), RUN_SECONDS)
        assert "Traceback" not in training.log
        yield training, checkpoints


def steps_of(leg: str, training: Training) -> list[dict]:
    first = STEPS * list(LEGS).index(leg)
    return training.steps[first : first + STEPS]


@pytest.mark.parametrize("leg", LEGS)
def test_a_leg_trains_three_steps_saves_and_resumes(tour, leg):
    training, checkpoints = tour
    rows = steps_of(leg, training)
    saved_after = STEPS * list(LEGS).index(leg) + STEPS - 1
    state_file = checkpoints / f"global_step_{saved_after}" / "aer_state.json"
    saved = json.loads(state_file.read_text())
    assert saved["config"]["method"] == LEGS[leg].method
    written = parse_entropy_config(saved["config"])
    state, memory, changes = load_run(state_file, written)
    assert changes == []
    config = written.resolve(TOTAL_STEPS)

    assert [row["aer/updates"] for row in rows] == [1, 2, 3]
    assert (state.step, state.updates) == (saved_after, 2)
    assert all(math.isfinite(row["aer/entropy"]) and row["aer/entropy"] > 0 for row in rows)
    assert all(row["actor/aer/policy_gradient"] > 0 for row in rows)
    # The third step trained with what the checkpoint held.
    assert rows[2]["aer/alpha"] == state.alpha
    # Every α follows from the entropies of the log, through the resume.
    logged = [MetricsRow(int(row["training/global_step"]), row) for row in rows]
    assert replay(logged, config).largest_difference == 0.0
    _assert_parts_act(LEGS[leg].method, rows, memory)


def _assert_parts_act(name: str, rows: list[dict], memory) -> None:
    """What a part does shows in the log; what a method does not have is not there."""
    method = get_method(name)
    term = [row["actor/aer/entropy_term"] for row in rows]
    assert any(value != 0 for value in term) == (name in WITH_A_TERM)
    assert any(row.get("aer/advantage_change", 0) > 0 for row in rows) == method.advantage_shaping.shapes
    assert all(("aer/reward_change" in row) == method.reward_shaping.changes for row in rows)
    assert all(
        ("aer/question_memory/size" in row) == parse_entropy_config({"method": name}).uses_questions for row in rows
    )
    if "aer/question_memory/size" in rows[0]:
        # The memory resumed from the checkpoint: it holds the questions of all steps.
        assert (
            rows[2]["aer/question_memory/size"] > rows[1]["aer/question_memory/size"] == len(memory.questions.questions)
        )
    if name == "aent":
        # Without its least likely fifth, an untrained policy's vocabulary of 19 tokens has 16: the engine was asked.
        assert all(math.log(16) - 0.2 < row["aer/entropy"] < math.log(16) for row in rows)
    if name == "ares":
        assert memory.reward_shaping["threshold"] > 0
        assert any(row["aer/reward_change"] != 0 for row in rows)
    if name == "siren":
        assert rows[0]["aer/bonus_slope"] == 0.0
        assert all(row["aer/bonus_slope"] != 0 for row in rows[1:])
        assert rows[1]["aer/bonus_slope"] == pytest.approx(2 * (rows[0]["aer/entropy"] - rows[1]["aer/entropy"]))


WITH_A_TERM = {
    "aent", "aer", "aer_absolute_target", "aer_allocation_only", "aer_no_allocation", "ceeh_me", "epo", "fixed",
    "siren", "skywork",
}  # fmt: skip
"""Methods whose loss has an entropy term; that of the others is 0."""


def accuracies(rows: list[dict]) -> list[dict[str, float]]:
    return [{name: row[name] for name in row if name.startswith("aer/accuracy/")} for row in rows]


def test_fixed_needs_no_accuracy(tour):
    training, _ = tour
    rows = steps_of("fixed_any_reward", training)
    assert accuracies(rows) == [{}, {}, {}]
    assert all(row["aer/weight/mean"] == 1 for row in rows)
    assert all(-1 <= row["critic/score/mean"] <= 1 for row in rows)
    assert training.log.count("left out from now on (the method fixed does not need them)") == ONCE_AND_AFTER_THE_RESUME


def test_a_threshold_makes_an_accuracy_of_a_reward_of_plus_and_minus_one(tour):
    for row in steps_of("aer_threshold", tour[0]):
        # A share p of answers with 1, the others with -1.
        assert row["aer/accuracy/mean"] == pytest.approx((1 + row["critic/score/mean"]) / 2)
        assert row["aer/accuracy/unreported"] == 0


def test_answers_that_the_reward_does_not_judge_count_as_wrong(tour):
    training, _ = tour
    assert all(0 < row["aer/accuracy/unreported"] < 16 for row in steps_of("aer_unjudged", training))
    assert training.log.count("they count as wrong") == ONCE_AND_AFTER_THE_RESUME


def test_adapters_are_trained_sampled_with_and_compared_with_the_model_without_them(tour):
    steps = tour[0].steps[: STEPS * len(LEGS)]
    # The reference is the model without its adapters.
    assert steps[-1]["actor/kl_loss"] > 0
    # What vLLM samples with is what was trained, adapters included.
    assert all(abs(step["rollout_corr/kl"]) < 1e-3 for step in steps)


def test_the_stack_is_the_real_one(tour):
    training, _ = tour
    assert "[verl_aer] training: FSDP2, world size 1, cpu:gloo" in training.log
    assert training.log.count("[tour] step") == len(LEGS) == len(method_names()) + 3 == 21


def test_a_dead_worker_ends_the_run_with_its_cause(tour):
    """The last test of the file: it ends the run that the others read."""
    assert_a_killed_worker_ends_the_run(tour[0], "ray::WorkerDict")
