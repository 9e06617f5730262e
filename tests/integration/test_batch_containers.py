"""Reward fields in each of the containers that TransferQueue's backends return."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import NonTensorData, NonTensorStack, TensorDict

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from verl_aer.integration.batch import _read_acc

ROWS = [{"reward_extra_info": {"acc": 1.0}}, {"reward_extra_info": {"acc": 0.0}}, None]


class LinkedList(list):
    """Stands for TensorDict's own subclass of list."""


def array(rows):
    found = np.empty(len(rows), dtype=object)
    found[:] = rows
    return found


CONTAINERS = {
    "list": LinkedList,
    "array": array,
    "stack": lambda rows: NonTensorStack(*(NonTensorData(row) for row in rows)),
    "wrapped": lambda rows: [NonTensorData(row) for row in rows],
}


@pytest.mark.guards("T12")
@pytest.mark.parametrize("container", CONTAINERS)
def test_correctness_is_read_from_every_container(container):
    # The third row is padding: whatever stands there is not asked.
    data = {"extra_fields": CONTAINERS[container](ROWS)}
    found = _read_acc(data, "acc", is_padding=np.array([False, False, True]))
    assert found.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.guards("T12")
def test_correctness_is_read_from_a_tensordict():
    data = TensorDict({"length": torch.ones(3)}, batch_size=3)
    data["extra_fields"] = NonTensorStack(*(NonTensorData(row) for row in ROWS))
    found = _read_acc(data, "acc", is_padding=np.array([False, False, True]))
    assert found.tolist() == [1.0, 0.0, 0.0]
