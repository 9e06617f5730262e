"""Every bad setting is found in the composed config before Ray starts, with its key and fix."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import verl
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from verl_aer import EntropyControl, method_names, parse_entropy_config
from verl_aer.config.schema import ConfigError, Problem
from verl_aer.control.state_file import load_run, save_state
from verl_aer.integration import availability, callback
from verl_aer.integration import preflight as module
from verl_aer.integration.checkpoint import resume_warnings, sampling_conditions
from verl_aer.integration.preflight import CheckedConfig, Note, check_config
from verl_aer.integration.reward_trial import Outcome

REWARD = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {body}
"""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A data set of one row and a reward that reports correctness."""
    row = {
        "data_source": "test",
        "prompt": [{"role": "user", "content": "1+1="}],
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"index": 0},
    }
    data = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist([row]), data)
    reward = tmp_path / "reward.py"
    reward.write_text(REWARD.format(body='{"score": -1.0, "acc": 0.0}'))
    return {"data": data, "reward": reward, "checkpoints": tmp_path / "checkpoints"}


def good_overrides(files: dict[str, Path]) -> list[str]:
    return [
        "+entropy=aer",
        "+hardware=cpu",
        f"data.train_files={files['data']}",
        f"data.val_files={files['data']}",
        f"reward.custom_reward_function.path={files['reward']}",
        f"trainer.default_local_dir={files['checkpoints']}",
        "actor_rollout_ref.rollout.n=8",
    ]


def composed(files: dict[str, Path], *overrides: str) -> DictConfig:
    """veRL's config with our overrides; a method among them takes the place of aer."""
    good = good_overrides(files)
    if any(override.startswith("+entropy=") for override in overrides):
        good.remove("+entropy=aer")
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[*good, *overrides])


def everything(config: DictConfig, on_driver: bool = False) -> list[Problem]:
    """Problems and notes."""
    checked = check_config(config, on_driver=on_driver)
    return [*checked.problems, *checked.notes]


def problems_of(files: dict[str, Path], *overrides: str) -> dict[str, str]:
    """Key → message and fix of every problem; the reward function is not called."""
    return by_key(everything(composed(files, *overrides)))


def by_key(problems: list[Problem]) -> dict[str, str]:
    return {problem.key: f"{problem.message} {problem.fix}" for problem in problems}


def test_a_good_config_has_no_problem(files):
    assert problems_of(files) == {}


@pytest.mark.parametrize("method", method_names())
def test_every_preset_runs_on_the_same_settings(files, method):
    assert problems_of(files, f"+entropy={method}") == {}


SEPARATE = [
    "trainer.v1.trainer_mode=aer_separate_async",
    "trainer.v1.separate_async.parameter_sync_step=2",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "data.train_batch_size=8",
    "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=1",
]


def test_the_other_trainer_modes_may_be_used(files):
    assert problems_of(files, "trainer.v1.trainer_mode=aer_colocate_async") == {}
    assert problems_of(files, *SEPARATE) == {}


BYPASS = ["algorithm.rollout_correction.bypass_mode=true"]


def test_shaping_without_entropies_runs_in_bypass_mode(files):
    assert problems_of(files, "+entropy=entropic", *BYPASS) == {}


# (overrides, key that is named, what the message or its fix says)
BAD = [
    (["entropy.target.tau=1.3"], "entropy.target.tau", "(0, 1]"),
    (["entropy.target.tau=0"], "entropy.target.tau", "(0, 1]"),
    (["entropy.allocation.rho=0"], "entropy.allocation.rho", "> 0"),
    (["entropy.controller.ki=-1"], "entropy.controller.ki", ">= 0"),
    (["entropy.controller.alpha_min=0.3"], "entropy.controller.alpha_max", "alpha_min (0.3)"),
    (["entropy.method=ear"], "entropy.method", "aer"),
    (["entropy.allocation.kind=dificulty"], "entropy.allocation.kind", "difficulty"),
    (["+entropy.target.taw=0.5"], "entropy.target.taw", "tau"),
    (["actor_rollout_ref.actor.entropy_coeff=0.01"], "actor_rollout_ref.actor.entropy_coeff", "entropy=fixed"),
    (["actor_rollout_ref.actor.calculate_entropy=false"], "actor_rollout_ref.actor.calculate_entropy", "=true"),
    (["actor_rollout_ref.rollout.n=1"], "actor_rollout_ref.rollout.n", "aer_no_allocation"),
    (["+entropy=ceeh_me", "actor_rollout_ref.rollout.n=1"], "actor_rollout_ref.rollout.n", "aer_no_allocation"),
    (["+entropy=ares", "actor_rollout_ref.rollout.n=1"], "actor_rollout_ref.rollout.n", "aer_no_allocation"),
    (["+entropy=ares", *BYPASS], "entropy.reward_shaping.kind", "bypass_mode=false"),
    (["+entropy=steer", *BYPASS], "entropy.advantage_shaping.kind", "bypass_mode=false"),
    (["entropy.question_memory.max_questions=0"], "entropy.question_memory.max_questions", ">= 1"),
    (["distillation.enabled=true"], "distillation.enabled", "=false"),
    (["trainer.v1.trainer_mode=sync"], "trainer.v1.trainer_mode", "aer_sync"),
    (["algorithm.adv_estimator=remax"], "algorithm.adv_estimator", "greedy baseline"),
    (["trainer.v1.trainer_mode=colocate_async"], "trainer.v1.trainer_mode", "aer_colocate_async"),
    ([*SEPARATE, "data.train_batch_size=7"], "data.train_batch_size", "data.train_batch_size=8"),
    ([*SEPARATE, "actor_rollout_ref.rollout.nnodes=0"], "actor_rollout_ref.rollout.nnodes", "1 or more"),
    (
        [*SEPARATE, "actor_rollout_ref.rollout.checkpoint_engine.backend=naive"],
        "actor_rollout_ref.rollout.checkpoint_engine.backend",
        "gloo",
    ),
    (["entropy.watchdog.rollout_timeout_s=0"], "entropy.watchdog.rollout_timeout_s", "> 0"),
    (["trainer.use_v1=false"], "trainer.use_v1", "=true"),
    (["trainer.device=cuda"], "trainer.device", "+hardware=cpu"),
    (["data.train_files=/nowhere/train.parquet"], "data.train_files", "/nowhere/train.parquet"),
    (
        ["actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm"],
        "actor_rollout_ref.actor.loss_scale_factor",
        "data.max_response_length",
    ),
    (
        ["reward.custom_reward_function.path=/nowhere/reward.py"],
        "reward.custom_reward_function.path",
        "does not exist",
    ),
]


@pytest.mark.parametrize(("overrides", "key", "said"), BAD, ids=[" ".join(case[0]) for case in BAD])
@pytest.mark.guards("T16", "T17", "T21")
def test_a_bad_setting_is_named_with_its_fix(files, overrides, key, said):
    found = problems_of(files, *overrides)
    assert key in found, found
    assert said in found[key]


def test_a_plug_in_that_failed_stops_a_run_that_asks_for_it(files, monkeypatch):
    monkeypatch.setattr(availability, "failures", ["a part failed: ImportError: no such name"])
    (problem,) = check_config(composed(files)).problems
    assert problem.key == "verl_aer"
    assert "no such name" in problem.message
    assert "verl-aer doctor" in problem.fix


def test_all_problems_are_reported_together(files):
    found = problems_of(files, "entropy.target.tau=2", "entropy.allocation.rho=-1", "trainer.device=cuda")
    assert {"entropy.target.tau", "entropy.allocation.rho", "trainer.device"} <= set(found)


def test_a_method_that_is_a_policy_loss_needs_that_loss(files):
    key = "actor_rollout_ref.actor.policy_loss.loss_mode"
    assert "'vanilla'" in problems_of(files, "+entropy=clip_cov", f"{key}=vanilla")[key]
    # Its numbers may be tuned.
    assert problems_of(files, "+entropy=clip_cov", "actor_rollout_ref.actor.policy_loss.clip_cov_ratio=0.001") == {}


@pytest.mark.guards("bug 9")
@pytest.mark.parametrize("kind", ["clamped", "nucleus"])
def test_a_measure_of_the_logits_is_refused_where_no_engine_has_them(files, kind):
    measure, fused = f"entropy.measure.kind={kind}", "actor_rollout_ref.model.use_fused_kernels=true"
    assert problems_of(files, measure) == {}
    assert problems_of(files, fused) == {}
    assert "fused kernels" in problems_of(files, measure, fused)["entropy.measure.kind"]
    other = problems_of(files, measure, "actor_rollout_ref.actor.strategy=veomni")
    assert "'veomni'" in other["entropy.measure.kind"]


def test_a_measure_of_the_sample_needs_no_logits(files):
    assert problems_of(files, "+entropy=skywork", "actor_rollout_ref.model.use_fused_kernels=true") == {}
    assert problems_of(files, "+entropy=ceeh_me", "actor_rollout_ref.model.use_fused_kernels=true") == {}


def test_what_is_pushed_needs_logits_as_what_is_measured_does(files):
    pushed, fused = "entropy.pushed.kind=clamped", "actor_rollout_ref.model.use_fused_kernels=true"
    assert problems_of(files, pushed) == {}
    assert list(problems_of(files, pushed, fused)) == ["entropy.pushed.kind"]
    assert list(problems_of(files, pushed, "actor_rollout_ref.actor.strategy=veomni")) == ["entropy.pushed.kind"]
    # Measured and pushed alike is one problem.
    assert list(problems_of(files, "+entropy=aent", fused)) == ["entropy.measure.kind"]


def test_in_bypass_mode_one_pass_computes_one_measure_of_the_logits(files):
    bypass = ["algorithm.rollout_correction.bypass_mode=true", "actor_rollout_ref.rollout.calculate_log_probs=true"]
    shown = problems_of(files, "entropy.pushed.kind=clamped", *bypass)
    assert "the update measures 'full' and pushes 'clamped'" in shown["entropy.pushed.kind"]
    assert "entropy.pushed.kind" in problems_of(files, "+entropy=aent", "entropy.pushed.kind=full", *bypass)
    assert "entropy.pushed.kind" in problems_of(
        files, "+entropy=aent", "entropy/pushed=clamped", "entropy.pushed.p=0.4", *bypass
    )
    for right in (
        ["+entropy=skywork"],
        ["+entropy=aent"],
        ["+entropy=aent", "entropy.pushed.kind=sampled"],
        ["+entropy=aent", "entropy.pushed.kind=clamped"],
        ["+entropy=aer", "entropy.measure.kind=sampled", "entropy.pushed.kind=clamped"],
    ):
        assert problems_of(files, *right, *bypass) == {}


def test_a_target_that_nothing_uses_is_a_note(files):
    fixed = ["entropy/controller=fixed", "entropy/target=absolute", "entropy.target.entropy=0.3"]
    (note,) = everything(composed(files, *fixed))
    assert isinstance(note, Note)
    assert "'fixed' does not use the target 'absolute'" in note.message
    assert everything(composed(files, "entropy/controller=fixed", "entropy/target=none")) == []
    assert everything(composed(files, *fixed, "entropy/regularizer=squared_anchor")) == []


def test_group_of_one_is_fine_where_difficulty_is_not_asked(files):
    assert problems_of(files, "+entropy=aer_no_allocation", "actor_rollout_ref.rollout.n=1") == {}


@pytest.mark.parametrize(
    ("body", "overrides", "is_refused"),
    [
        ('{"score": 0.5}', [], True),
        ('{"score": 0.5, "solved": 1.0}', ["entropy.correctness.reward_key=solved"], False),
        # veRL itself reports a bare number as `acc`.
        ("0.0", [], False),
    ],
)
def test_a_reward_without_correctness_needs_a_threshold(files, body, overrides, is_refused):
    files["reward"].write_text(REWARD.format(body=body))
    found = by_key(everything(composed(files, *overrides), on_driver=True))
    assert ("reward.custom_reward_function" in found) == is_refused
    if is_refused:
        assert "entropy.correctness.threshold" in found["reward.custom_reward_function"]


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """The calls of the user's reward function, none of which are made; its outcome is the last one of ``outcomes``."""
    made: list[tuple] = []

    def try_reward(*call):
        made.append(call)
        return Outcome(keys=["acc", "score"])

    monkeypatch.setattr(module, "try_reward", try_reward)
    return made


def test_the_reward_is_called_once_and_on_the_driver_only(files, calls):
    config = composed(files, "+reward.custom_reward_function.reward_kwargs.scale=2")
    assert everything(config) == []
    assert calls == []
    assert everything(config, on_driver=True) == []
    ((path, name, kwargs, answer),) = calls
    assert (path, name, kwargs) == (str(files["reward"]), "compute_score", {"scale": 2})
    assert answer == {"data_source": "test", "solution_str": "", "ground_truth": "2", "extra_info": {"index": 0}}


@pytest.mark.parametrize(
    "override",
    [
        "reward.reward_model.enable=true",
        "entropy.correctness.threshold=0.0",
        "+entropy=fixed",
        "data.train_files=/nowhere/train.parquet",
    ],
)
def test_the_reward_is_not_called_where_it_cannot_or_need_not(files, calls, override):
    check_config(composed(files, override), on_driver=True)
    assert calls == []


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (Outcome(failure="IndexError: list index out of range"), "IndexError: list index out of range"),
        (Outcome(failure="it did not return within 20 s"), "did not return within 20 s"),
        (Outcome(number=-1.0), "the number -1 for an empty answer"),
    ],
)
def test_what_a_reward_says_of_an_empty_answer_stops_no_run(files, monkeypatch, outcome, said):
    monkeypatch.setattr(module, "try_reward", lambda *call: outcome)
    found = check_config(composed(files), on_driver=True)
    assert found.problems == []
    (note,) = found.notes
    assert note.key == "reward.custom_reward_function"
    assert said in note.message


@pytest.mark.parametrize("outcome", [Outcome(), Outcome(number=0.0), Outcome(number=1.0), Outcome(keys=["acc"])])
def test_a_reward_that_may_be_right_is_not_mentioned(files, monkeypatch, outcome):
    monkeypatch.setattr(module, "try_reward", lambda *call: outcome)
    assert everything(composed(files), on_driver=True) == []


def fail(*args):
    raise RuntimeError("two\nlines")


def fail_late(*args):
    yield Problem("a.key", "is wrong", "Change it.")
    raise RuntimeError("two\nlines")


@pytest.mark.parametrize("checks", ["CONFIG_CHECKS", "MACHINE_CHECKS", "ENTROPY_CHECKS", "DRIVER_CHECKS"])
def test_a_check_that_fails_itself_is_a_note_and_the_others_are_made(files, monkeypatch, checks):
    monkeypatch.setattr(module, checks, [fail, *getattr(module, checks)])
    config = composed(files, "trainer.device=cuda")
    found = check_config(config, on_driver=True)
    assert [problem.key for problem in found.problems] == ["trainer.device"]
    assert found.notes == [
        Note("preflight (fail)", "the check itself failed: RuntimeError: two lines", "The run may still work.")
    ]


def test_what_a_check_has_found_before_it_fails_is_kept(files, monkeypatch):
    monkeypatch.setattr(module, "CONFIG_CHECKS", [fail_late])
    found = check_config(composed(files))
    assert [problem.key for problem in found.problems] == ["a.key"]
    assert [note.key for note in found.notes] == ["preflight (fail late)"]


def test_every_check_survives_a_config_that_is_not_verls(files):
    found = check_config(OmegaConf.create({"entropy": {"method": "aer"}}), elsewhere=True, on_driver=True)
    assert found.problems == []
    failed = {note.key for note in found.notes}
    assert {
        "preflight (trainer mode)",
        "preflight (groups have rollouts)",
        "preflight (state can be resumed)",
    } <= failed


def test_an_entropy_node_that_cannot_be_read_is_one_problem(files):
    found = problems_of(files, "entropy.controller.ki=${trainer.no_such_key}")
    assert "InterpolationKeyError" in found["entropy"]


def test_the_driver_prints_notes_and_goes_on_and_ends_with_problems(files, monkeypatch, capsys):
    found = CheckedConfig(None, [], [Note("a.key", "may be wrong", "Look at it.")])
    seen = []

    def fake(config, on_driver=False):
        seen.append(on_driver)
        return found

    monkeypatch.setattr(callback, "check_config", fake)
    callback.RunCallback().on_job_start(composed(files))
    assert capsys.readouterr().err == "[verl_aer] note: a.key: may be wrong. Look at it.\n"
    found.problems.append(Problem("another.key", "is wrong", "Change it."))
    with pytest.raises(SystemExit):
        callback.RunCallback().on_job_start(composed(files))
    said = capsys.readouterr().err
    assert "note: a.key" in said
    assert "1. another.key: is wrong. Change it." in said
    assert "2." not in said
    assert seen == [True, True]


def test_a_path_to_resume_from_has_to_be_given(files):
    found = problems_of(files, "trainer.resume_mode=resume_path")
    assert list(found) == ["trainer.resume_from_path"]
    assert "trainer.resume_mode=resume_path needs a checkpoint" in found["trainer.resume_from_path"]
    with pytest.raises(ConfigError, match=r"trainer\.resume_from_path"):
        resume_warnings(composed(files, "trainer.resume_mode=resume_path"))


CHUNKS = "actor_rollout_ref.actor.megatron.entropy_from_logits_with_chunking"


@pytest.mark.parametrize("key", ["actor_rollout_ref.actor.entropy_from_logits_with_chunking", CHUNKS])
def test_chunked_entropy_is_refused_on_megatron_only(files, key):
    assert problems_of(files, "actor_rollout_ref.actor.entropy_from_logits_with_chunking=true") == {}
    megatron = ["model_engine=megatron", "actor_rollout_ref.actor.strategy=megatron"]
    assert problems_of(files, *megatron) == {}
    found = problems_of(files, *megatron, f"{key}=true")
    assert list(found) == [CHUNKS]
    assert "the first update would fail" in found[CHUNKS]


def megatrons_entropy() -> dict[str, Any]:
    """veRL's own functions, with a tensor-parallel group of one instead of Megatron's, which is not installed here."""
    path = Path(verl.__file__).parent / "utils" / "megatron" / "tensor_parallel.py"
    wanted = ("_VocabParallelEntropy", "vocab_parallel_entropy", "vocab_parallel_entropy_with_chunking")
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if getattr(node, "name", None) in wanted]
    alone = SimpleNamespace(all_reduce=lambda *args, **kwargs: None, ReduceOp=SimpleNamespace(MAX=None))
    group = SimpleNamespace(get_tensor_model_parallel_group=lambda: None)
    eager = SimpleNamespace(
        autograd=torch.autograd,
        Tensor=torch.Tensor,
        zeros=torch.zeros,
        compile=lambda **kwargs: lambda function: function,
    )
    names: dict[str, Any] = {"torch": eager, "dist": alone, "mpu": group}
    exec(compile(tree, str(path), "exec"), names)
    return names


def test_megatrons_chunked_entropy_has_no_gradient_in_verl_0_9_1():
    functions = megatrons_entropy()
    weight = torch.randn(1, 6, 5, requires_grad=True)
    functions["vocab_parallel_entropy"](weight * 1.0).sum().backward()
    assert weight.grad.abs().sum() > 0
    # When this passes, the check can go.
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        functions["vocab_parallel_entropy_with_chunking"](weight * 1.0, chunk_size=3).sum().backward()


def checkpoint(files: dict[str, Path]) -> Path:
    """A checkpoint of step 3 that veRL would resume from; returns its state file."""
    folder = files["checkpoints"] / "global_step_3"
    folder.mkdir(parents=True)
    (files["checkpoints"] / "latest_checkpointed_iteration.txt").write_text("3")
    config = parse_entropy_config({"method": "aer", "controller": {"alpha_init": 0.01}})
    control = EntropyControl(config)
    for step, entropy in enumerate([1.0, 0.4, 0.4], start=1):
        control.observe(entropy, step)
    save_state(folder / "aer_state.json", control.state, parse_entropy_config({"method": "aer"}))
    return folder / "aer_state.json"


def test_a_good_checkpoint_may_be_resumed(files):
    checkpoint(files)
    assert problems_of(files) == {}


@pytest.mark.parametrize("damage", ["missing", "truncated", "corrupted", "newer"])
def test_a_damaged_state_is_refused_with_its_path_and_the_switch(files, damage):
    path = checkpoint(files)
    text = path.read_text()
    damaged = {
        "truncated": text[: len(text) // 2],
        "corrupted": text.replace('"step": 3', '"step": 4'),
        "newer": text.replace('"version": 4', '"version": 5'),
    }
    if damage == "missing":
        path.unlink()
    else:
        assert damaged[damage] != text
        path.write_text(damaged[damage])
    found = " ".join(problems_of(files).values())
    assert str(path) in found
    assert "entropy.on_missing_state=restart" in found
    assert problems_of(files, "entropy.on_missing_state=restart") == {}


def test_what_moves_the_entropy_may_change_on_resume_and_is_named(files):
    path = checkpoint(files)
    before = composed(files)
    state = load_run(path, parse_entropy_config({"method": "aer"})).state
    save_state(path, state, parse_entropy_config({"method": "aer"}), sampling_conditions(before))
    assert resume_warnings(before) == []

    warnings = resume_warnings(
        composed(files, "actor_rollout_ref.rollout.temperature=0.7", "data.max_response_length=7")
    )
    assert len(warnings) == 2
    assert warnings[0].startswith(
        "actor_rollout_ref.rollout.temperature was 1.0 and is now 0.7: the entropy may change"
    )
    assert warnings[1].startswith(f"data.max_response_length was {before.data.max_response_length} and is now 7")

    # There the entropy is measured in the update, and not in a pass before it.
    (warning,) = resume_warnings(composed(files, *BYPASS))
    assert warning.startswith("algorithm.rollout_correction.bypass_mode was None and is now True")

    with files["data"].open("ab") as data:
        data.write(b"another row")
    (warning,) = resume_warnings(before)
    assert warning.startswith("data.train_files was ['train.parquet (")
    assert resume_warnings(composed(files, "trainer.resume_mode=disable")) == []


@pytest.mark.e2e
def test_stock_main_ends_before_ray_with_all_problems(files, tmp_path):
    """The user's own command, with the config group added to veRL's primary config."""
    overrides = [o for o in good_overrides(files) if not o.startswith(("+entropy=", "+hardware="))]
    command = [sys.executable, "-W", "ignore", "-m", "verl.trainer.main_ppo"]
    command += ["+entropy=aer", "+hardware=cpu", *overrides]
    command += ["entropy.target.tau=1.3", "actor_rollout_ref.actor.entropy_coeff=0.1"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 2
    said = run.stderr.strip().splitlines()
    assert any("entropy.target.tau" in line for line in said[-4:])
    assert any("actor_rollout_ref.actor.entropy_coeff" in line for line in said[-4:])
    assert "Traceback" not in run.stderr
    assert "ray init" not in run.stdout.lower()


def test_user_can_switch_the_method_with_one_word(files):
    fixed = composed(files, "+entropy=fixed")
    assert OmegaConf.select(fixed, "entropy.controller.kind") == "fixed"
    assert fixed.trainer.v1.trainer_mode == "aer_sync"
