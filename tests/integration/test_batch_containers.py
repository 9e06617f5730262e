"""Reward fields in each container type that TransferQueue's backends return."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import NonTensorData, NonTensorStack, TensorDict

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from verl_aer.integration.batch import _number, _reward_infos

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


def read(data) -> list[float | None]:
    return [_number(info.get("acc")) for info in _reward_infos(data, rows=3, columns=[])]


@pytest.mark.guards("T12")
@pytest.mark.parametrize("container", CONTAINERS)
def test_correctness_is_read_from_every_container(container):
    assert read({"extra_fields": CONTAINERS[container](ROWS)}) == [1.0, 0.0, None]


@pytest.mark.guards("T12")
def test_correctness_is_read_from_a_tensordict():
    data = TensorDict({"length": torch.ones(3)}, batch_size=3)
    data["extra_fields"] = NonTensorStack(*(NonTensorData(row) for row in ROWS))
    assert read(data) == [1.0, 0.0, None]


COLUMNS = {
    "floats": np.array([1.0, 0.0, 0.25]),
    "booleans": np.array([True, False, True]),
    "tensor": torch.tensor([1.0, 0.0, 0.25]),
    "stack": NonTensorStack(*(NonTensorData(value) for value in np.array([1.0, 0.0, 0.25]))),
}


@pytest.mark.guards("T12")
@pytest.mark.parametrize("column", COLUMNS)
def test_a_colocated_reward_models_column_is_read_from_every_container(column):
    infos = _reward_infos({"acc": COLUMNS[column]}, rows=3, columns=["acc", "score"])
    assert [_number(info["acc"]) for info in infos] == [float(value) for value in [1, 0, infos[2]["acc"]]]
    assert all("score" not in info for info in infos)


@pytest.mark.parametrize("value", [None, "right", [1.0, 0.0], np.array([1.0, 0.0]), {"acc": 1.0}], ids=str)
def test_what_is_not_one_number_says_nothing(value):
    assert _number(value) is None
