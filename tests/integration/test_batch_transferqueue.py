"""Reading rows from a real TransferQueue, and sending weights through it, on Ray."""

from __future__ import annotations

import numpy as np
import pytest
import ray
import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from verl_aer.config.schema import CorrectnessConfig
from verl_aer.correctness import CorrectnessError
from verl_aer.integration.batch import WEIGHT_FIELD, attach_weights, read_rows

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


CORRECTNESS = CorrectnessConfig()


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
    read = read_rows(batch, CORRECTNESS)

    assert read.uid == ["a", "a", "a", "b_x", "pad7"]
    assert read.tokens.tolist() == [2, 3, 1, 1, 0]
    # Masked tokens count for nothing, a NaN among them too.
    assert read.entropy_nats.tolist() == [1.0, 1.5, 2.0, 0.125, 0.0]
    groups = read.groups(CORRECTNESS)
    # a: session 0 is judged by its last output (0), session 1 is correct: 1/2. b_x: 1. Padding is no prompt.
    assert groups.accuracy.tolist() == [0.5, 1.0]
    assert groups.prompt_of_row.tolist() == [0, 0, 0, 1, -1]


@pytest.mark.guards("T11")
def test_without_acc_the_threshold_on_the_reward_decides(transfer_queue):
    batch = put(["c_0_0", "c_1_0"], [row(None, -1.0, [0.1, 0.1]), row(None, 1.0, [0.1])])
    read = read_rows(batch, CORRECTNESS)
    assert read.acc is None
    assert read.groups(CorrectnessConfig(threshold=0.0)).accuracy.tolist() == [0.5]
    with pytest.raises(CorrectnessError, match=r"entropy\.correctness\.threshold"):
        read.groups(CORRECTNESS)


def test_of_sample_reads_the_old_log_probs(transfer_queue):
    rows = [row(1.0, 1.0, [9.0, 9.0, 9.0], mask=[1, 0, 1]), row(0.0, 0.0, [9.0])]
    for fields, log_probs in zip(rows, [[-0.5, float("nan"), -0.25], [-2.0]], strict=True):
        fields["old_log_probs"] = torch.tensor(log_probs)
    read = read_rows(put(["s_0_0", "s_1_0"], rows), CORRECTNESS, of_sample=True)
    assert read.entropy_nats.tolist() == [0.75, 2.0]
    assert read.tokens.tolist() == [2, 1]


def test_acc_on_some_rows_only_is_an_error(transfer_queue):
    batch = put(["d_0_0", "d_1_0"], [row(1.0, 1.0, [0.1, 0.1]), row(None, 1.0, [0.1])])
    with pytest.raises(CorrectnessError, match="row 1"):
        read_rows(batch, CORRECTNESS)


def test_correctness_key_is_the_configured_one(transfer_queue):
    batch = put(["e_0_0"], [row(1.0, 1.0, [0.1, 0.1], extra={"solved": 0.0})])
    assert read_rows(batch, CorrectnessConfig(key="solved")).acc.tolist() == [0.0]


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
