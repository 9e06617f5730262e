"""Our loss satisfies the contract of every training engine of veRL, including those whose library is missing here.

Megatron, VeOmni, TorchTitan and Automodel cannot be imported without their libraries, so the tests read in their source
how they call a loss. None of them has been run with this package on hardware.
"""

from __future__ import annotations

import ast
import inspect
from functools import partial
from pathlib import Path

import torch
import verl.workers.engine

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from tests.integration.test_loss_equals_verl import make_rows, ours, train
from verl_aer.integration.loss import entropy_loss

ENGINES = sorted(Path(verl.workers.engine.__file__).parent.glob("*/transformer_impl.py"))
CONTRACT = {"model_output", "data", "dp_group"}


def calls_of_the_loss(source: str) -> list[ast.Call]:
    """Calls of `loss_function` with the outputs of a model; passing it on is none."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "loss_function"]


def test_every_engine_calls_the_loss_by_the_same_three_names():
    callers = {path.parent.name: calls_of_the_loss(path.read_text()) for path in ENGINES}
    # VeOmni's engine inherits the call of FSDP's, and MindSpeed's that of Megatron.
    assert {name for name, calls in callers.items() if calls} == {"automodel", "fsdp", "megatron", "torchtitan"}
    for name, calls in callers.items():
        for call in calls:
            assert not call.args, name
            assert {keyword.arg for keyword in call.keywords} == CONTRACT, name
    # set_loss_fn gets the function with the others bound.
    bound = inspect.signature(partial(entropy_loss, None, "token-mean", from_log_probs=True)).parameters
    assert set(bound) == CONTRACT | {"from_log_probs", "measured_from_log_probs", "token_selection", "regularizer"}


def test_megatrons_scaling_is_undone_by_its_schedule():
    """Megatron's engine multiplies each loss by the number of micro-batches, and its schedule divides by it."""
    (megatron,) = (path.read_text() for path in ENGINES if path.parent.name == "megatron")
    assert 'scaled_loss = loss * data["num_micro_batch"]' in megatron

    splits = 4
    rows = make_rows(padding_rows=0, weights=[1.0, 1.0, 0.0, 0.0, 0.5, 0.5, 0.25, 0.25])

    def scaled(**contract: object) -> tuple[torch.Tensor, dict]:
        loss, metrics = ours("token-mean", "token-mean")(**contract)
        return loss * splits, metrics

    _, whole, _ = train(ours("token-mean", "token-mean"), rows, dp_size=1, splits=1)
    _, gradient, _ = train(scaled, rows, dp_size=1, splits=splits)
    assert (gradient / splits - whole).abs().max() <= 1e-6 * whole.abs().max()
