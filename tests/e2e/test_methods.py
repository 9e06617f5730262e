"""Each method on the real stack: three steps, the last of which starts from a checkpoint.

The run trains adapters (LoRA), with a reference policy and its KL loss, and importance weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Inputs, Training, trainings
from verl_aer import get_method, method_names, parse_entropy_config
from verl_aer.control.metrics import MetricsRow
from verl_aer.control.simulation import replay
from verl_aer.control.state_file import load_run

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3
"""Of each method, as in tests/e2e/method_tour.py."""
RUN_SECONDS = 1500


@pytest.fixture(scope="module")
def tour(inputs: Inputs, reward: str, tmp_path_factory) -> Iterator[tuple[Training, Path]]:
    """One real run through all methods, on one cluster; tests/e2e/method_tour.py is its trainer."""
    folder = tmp_path_factory.mktemp("tour")
    checkpoints = folder / "checkpoints"
    with trainings(inputs, folder) as start:
        training = start(
            "tour",
            "none",
            reward,
            "trainer.v1.trainer_mode=aer_tour",
            "actor_rollout_ref.model.lora_rank=8",
            "actor_rollout_ref.model.lora_alpha=16",
            "actor_rollout_ref.rollout.load_format=safetensors",
            "actor_rollout_ref.actor.use_kl_loss=true",
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=4",
            "algorithm.rollout_correction.rollout_is=token",
            f"trainer.default_local_dir={checkpoints}",
            steps=STEPS * len(method_names()),
            environment={"VERL_USE_EXTERNAL_MODULES": "tests.e2e.method_tour", "PYTHONPATH": str(ROOT)},
        )
        assert training.wait(RUN_SECONDS) == 0, training.log[-5000:]
        yield training, checkpoints


@pytest.fixture
def of_method(tour, request) -> tuple[list[dict], Path, int]:
    """The metrics of a method's steps, its checkpoint's state, and the step before its first."""
    training, checkpoints = tour
    before = STEPS * method_names().index(request.param)
    rows = [row for row in training.steps if before < row["training/global_step"] <= before + STEPS]
    return rows, checkpoints / f"global_step_{before + STEPS - 1}" / "aer_state.json", before


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("of_method", method_names(), indirect=True)
def test_a_method_trains_three_steps_saves_and_resumes(of_method, request):
    rows, state_file, before = of_method
    name = request.node.callspec.params["of_method"]
    assert len(rows) == STEPS
    saved = json.loads(state_file.read_text())
    assert saved["config"]["method"] == name
    written = parse_entropy_config(saved["config"])
    state, memory, changes = load_run(state_file, written)
    assert changes == []
    config = written.resolve(STEPS * len(method_names()))

    assert [row["aer/updates"] for row in rows] == [1, 2, 3]
    assert (state.step, state.updates) == (before + 2, 2)
    assert all(math.isfinite(row["aer/entropy"]) and row["aer/entropy"] > 0 for row in rows)
    assert all(row["actor/aer/policy_gradient"] > 0 for row in rows)
    # The third step trained with what the checkpoint held.
    assert rows[2]["aer/alpha"] == state.alpha
    # Every α follows from the entropies of the log, through the resume.
    logged = [MetricsRow(int(row["training/global_step"]), row) for row in rows]
    assert replay(logged, config).largest_difference == 0.0
    _assert_parts_act(name, rows, memory)


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


def test_adapters_are_trained_sampled_with_and_compared_with_the_model_without_them(tour):
    steps = tour[0].steps
    # The reference is the model without its adapters.
    assert steps[-1]["actor/kl_loss"] > 0
    # What vLLM samples with is what was trained, adapters included.
    assert all(abs(step["rollout_corr/kl"]) < 1e-3 for step in steps)


def test_the_stack_is_the_real_one_and_ends_cleanly(tour):
    training, _ = tour
    assert "[verl_aer] training: FSDP2, world size 1, cpu:gloo" in training.log
    assert training.log.count("[tour] step") == len(method_names()) == 18
    assert training.leaves_nothing(20)
    assert "Traceback" not in training.log
