"""Rows are read from a real TransferQueue on Ray, and weights are written to it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.dapo import DAPORewardManager
from verl.experimental.reward_loop.reward_manager.gdpo import GDPORewardManager
from verl.experimental.reward_loop.reward_manager.limited import RateLimitedRewardManager
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from verl_aer import parse_entropy_config
from verl_aer.config.schema import CorrectnessConfig, EntropyConfig
from verl_aer.integration import batch as module
from verl_aer.integration.batch import (
    WEIGHT_FIELD,
    BatchRows,
    add_rewards,
    attach_weights,
    read_tokens,
    write_advantages,
)
from verl_aer.rollouts.groups import VerdictsSoFar
from verl_aer.rollouts.types import Rollouts

pytestmark = [
    pytest.mark.e2e,
    # Ray's own sockets and files, closed at shutdown.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def transfer_queue(ray_temp_dir):
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=str(ray_temp_dir))
    tq.init(OmegaConf.create({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}}))
    yield
    tq.close()
    ray.shutdown()


def row(acc, reward, entropy, mask=None, extra=None):
    """One output of an agent loop; ``reward`` sits on the last token, as veRL puts it."""
    length = len(entropy)
    scores = torch.zeros(length)
    scores[-1] = reward
    info = {} if acc is None else {"acc": acc}
    return {
        "rm_scores": scores,
        "response_mask": torch.tensor(mask if mask is not None else [1] * length),
        "entropy": torch.tensor(entropy),
        "extra_fields": {"reward_extra_info": {**info, **(extra or {})}},
    }


def put(keys, rows, padding=()):
    tags = [{"is_padding": True} if key in padding else {"status": "success"} for key in keys]
    tq.kv_batch_put(keys=keys, partition_id="train", fields=list_of_dict_to_tensordict(rows), tags=tags)
    return KVBatchMeta(keys=keys, tags=tags, partition_id="train")


AER = parse_entropy_config({"method": "aer"})
CORRECTNESS = AER.correctness


def read_rows(batch: KVBatchMeta, config: EntropyConfig, reward_is_colocated: bool = False) -> BatchRows:
    return module.read_rows(batch, config, reward_is_colocated)


def rollouts_of(read: BatchRows, correctness: CorrectnessConfig = CORRECTNESS) -> Rollouts:
    verdicts = read.judge(correctness, VerdictsSoFar())
    assert verdicts.problem == ""
    return read.rollouts(verdicts.correct)


@pytest.mark.guards("T9", "T10")
def test_rows_and_groups_from_a_real_queue(transfer_queue):
    # Prompt a: two rollouts, the first of two outputs (only the last, index 1, carries the outcome).
    # Prompt b_x (an uid may hold an underscore): one rollout. The last row is padding, a copy of a's first row.
    keys = ["a_0_0", "a_0_1", "a_1_0", "b_x_0_0", "pad7_0_0"]
    rows = [
        row(1.0, 1.0, [0.5, 0.5]),
        row(0.0, -1.0, [0.25, 0.25, 1.0]),
        row(1.0, 1.0, [2.0]),
        row(1.0, 1.0, [0.125, float("nan")], mask=[1, 0]),
        row(1.0, 0.0, [0.5, 0.5], mask=[0, 0]),
    ]
    batch = put(keys, rows, padding={"pad7_0_0"})
    read = read_rows(batch, AER)

    assert read.uid == ["a", "a", "a", "b_x", "pad7"]
    assert read.tokens.tolist() == [2, 3, 1, 1, 0]
    # Masked tokens count for nothing, a NaN among them too.
    assert read.entropy_nats.tolist() == [1.0, 1.5, 2.0, 0.125, 0.0]
    groups = rollouts_of(read).groups
    # a: session 0 is judged by its last output (0), session 1 is correct: 1/2. b_x: 1. Padding is no prompt.
    assert groups.accuracy.tolist() == [0.5, 1.0]
    assert groups.prompt_of_row.tolist() == [0, 0, 0, 1, -1]


@pytest.mark.guards("T11")
def test_without_acc_the_threshold_on_the_reward_decides(transfer_queue):
    batch = put(["c_0_0", "c_1_0"], [row(None, -1.0, [0.1, 0.1]), row(None, 1.0, [0.1])])
    read = read_rows(batch, AER)
    assert read.acc == [None, None]
    assert rollouts_of(read, CorrectnessConfig(threshold=0.0)).groups.accuracy.tolist() == [0.5]
    assert "entropy.correctness.threshold" in read.judge(CORRECTNESS, VerdictsSoFar()).problem


def test_of_sample_reads_the_old_log_probs(transfer_queue):
    rows = [row(1.0, 1.0, [9.0, 9.0, 9.0], mask=[1, 0, 1]), row(0.0, 0.0, [9.0])]
    for fields, log_probs in zip(rows, [[-0.5, float("nan"), -0.25], [-2.0]], strict=True):
        fields["old_log_probs"] = torch.tensor(log_probs)
    read = read_rows(put(["s_0_0", "s_1_0"], rows), parse_entropy_config({"method": "skywork"}))
    assert read.entropy_nats.tolist() == [0.75, 2.0]
    assert read.tokens.tolist() == [2, 1]


def test_acc_on_some_rows_only_is_wrong_or_an_error(transfer_queue):
    batch = put(["d_0_0", "d_1_0"], [row(1.0, 1.0, [0.1, 0.1]), row(None, 1.0, [0.1])])
    read = read_rows(batch, AER)
    verdicts = read.judge(CORRECTNESS, VerdictsSoFar())
    assert verdicts.correct.tolist() == [1.0, 0.0]
    assert verdicts.unreported.tolist() == [False, True]
    assert "row 1" in read.judge(CorrectnessConfig(on_missing="error"), VerdictsSoFar()).problem


def test_correctness_key_is_the_configured_one(transfer_queue):
    batch = put(["e_0_0"], [row(1.0, 1.0, [0.1, 0.1], extra={"solved": 0.0})])
    config = parse_entropy_config({"method": "aer", "correctness": {"reward_key": "solved"}})
    assert read_rows(batch, config).acc == [0.0]


@pytest.mark.guards("T6")
def test_weights_arrive_only_with_the_returned_batch(transfer_queue):
    keys = ["f_0_0", "f_1_0", "f_2_0"]
    batch = put(keys, [row(1.0, 1.0, [0.1] * n) for n in (1, 2, 3)])
    weights = np.array([0.25, 0.0, 1.0], dtype=np.float32)
    attached = attach_weights(batch, weights)

    assert WEIGHT_FIELD in attached.fields
    assert WEIGHT_FIELD not in (batch.fields or [])
    assert [tag.get("status") for tag in attached.tags] == ["success"] * 3
    data = tq.kv_batch_get(keys=attached.keys, partition_id="train", select_fields=[WEIGHT_FIELD])
    assert data[WEIGHT_FIELD].reshape(-1).tolist() == [0.25, 0.0, 1.0]


@pytest.mark.guards("T7")
def test_one_weight_for_every_row_or_none_is_sent(transfer_queue):
    batch = put(["g_0_0", "g_1_0"], [row(1.0, 1.0, [0.1]), row(1.0, 1.0, [0.1, 0.2])])
    with pytest.raises(ValueError, match="1 entropy weights for 2 rows"):
        attach_weights(batch, np.ones(1, dtype=np.float32))


def test_questions_are_known_by_the_data_sets_id_or_by_what_was_asked(transfer_queue):
    def asked(text: str, extra_info: dict | None):
        fields = row(1.0, 1.0, [0.1, 0.1])
        return {
            **fields,
            "data_source": "math",
            "raw_prompt": [{"role": "user", "content": text}],
            "extra_info": extra_info,
        }

    rows = [asked("1 + 1?", {"question_id": "q7"}), asked("1 + 1?", {}), asked("1 + 1?", {}), asked("1 + 2?", {})]
    read = read_rows(put(["h_0_0", "i_0_0", "j_0_0", "k_0_0"], rows), parse_entropy_config({"method": "ceeh_ea"}))
    assert read.question[0] == "q7"
    # Two prompts of one step that ask the same are one question.
    assert read.question[1] == read.question[2] != read.question[3]
    assert read.question_of_prompt(rollouts_of(read).groups) == read.question
    # Not asked for: nothing is fetched.
    assert read_rows(put(["l_0_0"], [row(1.0, 1.0, [0.1])]), AER).question is None


def test_a_rollout_of_several_outputs_is_one(transfer_queue):
    keys = ["m_0_0", "m_0_1", "m_1_0", "pad1_0_0"]
    rows = [row(1.0, 1.0, [0.1] * n) for n in (2, 3, 4, 5)]
    rollouts = rollouts_of(read_rows(put(keys, rows, padding={"pad1_0_0"}), AER))
    assert rollouts.tokens.tolist() == [5, 5, 4, 5]
    assert rollouts.is_last.tolist() == [False, True, True, False]
    assert rollouts.shortest_correct().tolist() == [4]


def test_a_selection_is_measured_as_it_is_pushed(transfer_queue):
    batch = put(["n_0_0"], [row(1.0, 1.0, [0.1, 0.5, 0.2, 0.4, 9.0], mask=[1, 1, 1, 1, 0])])
    config = parse_entropy_config({"method": "siren", "token_selection": {"quantile": 0.5}})
    # Of four tokens the two most uncertain count, for four: 2 * (0.5 + 0.4).
    assert read_rows(batch, config).entropy_nats == pytest.approx([1.8])


def test_rewards_are_added_at_the_last_token(transfer_queue):
    batch = add_rewards(put(["o_0_0", "o_1_0"], [row(1.0, 1.0, [0.1] * n) for n in (2, 3)]), np.array([-0.25, 0.5]))
    scores = tq.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=["rm_scores"])["rm_scores"]
    assert [part.tolist() for part in scores.unbind()] == [[0.0, 0.75], [0.0, 0.0, 1.5]]
    # The group's accuracy is what it was.
    assert read_rows(batch, AER).acc == [1.0, 1.0]


def test_advantages_come_back_in_the_shape_they_had(transfer_queue):
    rows = [row(1.0, 1.0, [0.5] * n) for n in (1, 3)]
    for fields in rows:
        fields["advantages"] = torch.ones(len(fields["entropy"]))
        fields["old_log_probs"] = -torch.arange(len(fields["entropy"])).float()
    batch = put(["p_0_0", "p_1_0"], rows)
    tokens = read_tokens(batch, from_log_probs=False, with_entropy=True)
    assert tokens.mask.tolist() == [[True, False, False], [True, True, True]]
    assert tokens.entropy[1].tolist() == [0.5, 0.5, 0.5]
    assert read_tokens(batch, from_log_probs=True, with_entropy=True).entropy[1].tolist() == [0.0, 1.0, 2.0]
    written = write_advantages(batch, tokens.advantages * torch.tensor([[2.0], [3.0]]))
    data = tq.kv_batch_get(keys=written.keys, partition_id="train", select_fields=["advantages"])["advantages"]
    assert [part.tolist() for part in data.unbind()] == [[2.0], [3.0, 3.0, 3.0]]
    assert "advantages" in written.fields


def scored(length: int) -> dict:
    """One output of an agent loop whose reward is left to a colocated reward model."""
    tokens = torch.arange(length)
    return {
        "prompts": torch.arange(2),
        "responses": tokens,
        "input_ids": torch.arange(2 + length),
        "position_ids": torch.arange(2 + length),
        "response_mask": torch.ones(length, dtype=torch.int64),
        "raw_prompt": [{"role": "user", "content": "1 + 1?"}],
        "extra_fields": {},
    }


def score_colocated(batch: KVBatchMeta, results: list[float | dict]) -> KVBatchMeta:
    """veRL's own part of the step, around a reward function that returns ``results``."""
    infos = [result if isinstance(result, dict) else {"acc": result} for result in results]
    scores = [result["score"] if isinstance(result, dict) else result for result in results]

    def compute_rm_score(data: DataProto) -> DataProto:
        rm_scores = torch.zeros(data.batch["responses"].shape)
        lengths = data.batch["attention_mask"][:, 2:].sum(dim=-1)
        rm_scores[torch.arange(len(scores)), lengths - 1] = torch.tensor(scores)
        columns = {key: np.array([info[key] for info in infos]) for key in infos[0]}
        return DataProto(
            batch=TensorDict({"rm_scores": rm_scores}, batch_size=len(scores)),
            non_tensor_batch=columns,
            meta_info={"reward_extra_keys": list(columns)},
        )

    trainer = SimpleNamespace(
        reward_loop_manager=SimpleNamespace(compute_rm_score=compute_rm_score),
        tokenizer=SimpleNamespace(pad_token_id=0),
        _lengths_to_mask=PPOTrainer._lengths_to_mask,
    )
    return PPOTrainer._compute_reward_colocate(trainer, batch)


def test_a_colocated_reward_models_correctness_is_found(transfer_queue):
    batch = put(["q_0_0", "q_1_0", "r_0_0"], [scored(length) for length in (2, 3, 4)])
    results = [{"score": 0.7, "acc": 1.0}, {"score": -0.2, "acc": 0.0}, {"score": 2.5, "acc": 0.5}]
    # With a row that veRL adds to fill the batch, after the reward.
    batch = upsample_batch_to_divisible_size(score_colocated(batch, results), 4, eos_token_id=0)
    read = read_rows(batch, AER, reward_is_colocated=True)
    assert read.acc[:3] == [1.0, 0.0, 0.5]
    assert read.reward[:3] == pytest.approx([0.7, -0.2, 2.5])
    assert rollouts_of(read).groups.accuracy.tolist() == [0.5, 0.5]


def test_a_colocated_reward_of_one_number_is_the_reward(transfer_queue):
    batch = score_colocated(put(["s_2_0", "s_3_0"], [scored(2), scored(3)]), [0.3, 1.0])
    read = read_rows(batch, AER, reward_is_colocated=True)
    assert read.acc_is_reward.tolist() == [True, True]
    assert "row 0 has the reward 0.3" in read.judge(CORRECTNESS, VerdictsSoFar()).problem
    assert rollouts_of(read, CorrectnessConfig(threshold=0.5)).groups.accuracy.tolist() == [0.5]


def test_a_column_of_the_data_set_is_not_taken_for_the_rewards(transfer_queue):
    # Elsewhere the batch's columns are the data set's: how often another model solved the prompt, for example.
    rows = [{**row(acc, 1.0, [0.1, 0.1]), "acc": 0.25} for acc in (None, 1.0)]
    assert read_rows(put(["t_0_0", "t_1_0"], rows), AER).acc == [None, 1.0]


@pytest.mark.parametrize("acc", ["right", [1.0, 2.0], {"a": 1}], ids=["text", "list", "dict"])
def test_what_is_no_number_is_not_reported(transfer_queue, acc):
    read = read_rows(put(["u_0_0", "u_1_0"], [row(acc, 10.0, [0.1]), row(acc, -1.0, [0.1, 0.2])]), AER)
    assert read.acc == [None, None]


def test_correctness_of_another_name_or_value_is_not_the_reward(transfer_queue):
    batch = put(["w_0_0", "w_1_0"], [row(0.6, reward, [0.1, 0.1], extra={"solved": 0.6}) for reward in (0.6, 1.2)])
    assert read_rows(batch, AER).acc_is_reward.tolist() == [True, False]
    config = parse_entropy_config({"method": "aer", "correctness": {"reward_key": "solved"}})
    assert read_rows(batch, config).acc_is_reward.tolist() == [False, False]


async def score(manager: type, results: list[float | dict]) -> list[dict]:
    """What one of veRL's reward managers makes of each result of a reward function."""
    config = OmegaConf.create({"reward": {}, "trainer": {"experiment_name": "scored"}})
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: "4")
    scored = []
    for result in results:
        data = DataProto.from_dict(
            tensors={"responses": torch.arange(4)[None], "attention_mask": torch.ones(1, 6, dtype=torch.int64)},
            non_tensors={
                "data_source": np.array(["math"], dtype=object),
                "reward_model": np.array([{"ground_truth": "4"}], dtype=object),
                "extra_info": np.array([{}], dtype=object),
            },
        )
        scored.append(await manager(config, tokenizer, lambda returned=result, **asked: returned).run_single(data))
    return scored


@pytest.mark.parametrize(
    "manager", [NaiveRewardManager, DAPORewardManager, GDPORewardManager, RateLimitedRewardManager]
)
def test_what_verls_reward_managers_fill_in_is_told_from_a_rewards_own(transfer_queue, manager):
    results = [0.3, 1.0, {"score": 0.3, "acc": 0.3}, {"score": 0.3, "acc": True}]
    rows = []
    for scored in asyncio.run(score(manager, results)):
        info = {"reward_extra_info": scored["reward_extra_info"]}
        rows.append({**row(None, scored["reward_score"], [0.1, 0.1]), "extra_fields": info})
    read = read_rows(put([f"v{manager.__name__}_{i}_0" for i in range(4)], rows), AER)
    assert read.acc == [0.3, 1.0, 0.3, 1.0]
    assert read.acc_is_reward.tolist() == [True, True, False, False]
