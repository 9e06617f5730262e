"""An unsupported veRL works as if this package were not installed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.integration.test_stock_verl import run

NOT_OF_THE_TRAINER = {
    # Imported by the processes that need them, when they need them.
    "verl.DataProto",
    "verl.experimental.agent_loop.agent_loop.AgentLoopOutput",
    "verl.experimental.agent_loop.agent_loop.DictConfigWrap",
    "verl.experimental.agent_loop.single_turn_agent_loop.SingleTurnAgentLoop",
    "verl.experimental.reward_loop.reward_loop.RewardLoopWorker",
    "verl.trainer.ppo.v1.agent_loop_tq.AgentLoopManagerTQ",
    "verl.trainer.ppo.v1.agent_loop_tq.AgentLoopWorkerTQ",
    "verl.utils.tensordict_utils.list_of_dict_to_tensordict",
    "verl.workers.rollout.llm_server.LLMServerClient",
    "verl.checkpoint_engine.base.CheckpointEngine",
    "verl.checkpoint_engine.base.CheckpointEngineRegistry",
    "verl.utils.model",
    "verl.workers.rollout.vllm_rollout.utils.vLLMColocateWorkerExtension",
    "verl.workers.rollout.vllm_rollout.vllm_async_server.vLLMHttpServer",
    "verl.workers.rollout.vllm_rollout.vllm_async_server.vLLMReplica",
    # Only needed once something else has failed, or by type checkers.
    "verl.trainer.ppo.v1.replay_buffer.ReplayBuffer",
    "verl.trainer.ppo.v1.trainer_base.PPOTrainer",
    "verl.trainer.ppo.v1.trainer_base.TRAINER_REGISTRY",
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Symbol -> what became of veRL's imports and of a run that asks for us, with that symbol renamed."""
    out = tmp_path_factory.mktemp("renamed") / "out.json"
    run(["-m", "tests.integration.renamed_verl", str(out)])
    return {case["symbol"]: case for case in json.loads(out.read_text())}


def test_each_symbol_is_tried(outcomes):
    assert len(outcomes) > 30
    assert outcomes.keys() > NOT_OF_THE_TRAINER


def test_a_renamed_symbol_fails_no_import_of_verls(outcomes):
    assert {symbol: case["stock"] for symbol, case in outcomes.items() if case["stock"] != "ok"} == {}


def test_it_is_logged_once_and_raised_where_we_are_asked_for(outcomes):
    for symbol, case in outcomes.items():
        if symbol in NOT_OF_THE_TRAINER:
            assert case["errors"] == [], symbol
            continue
        (message,) = case["errors"]
        name = symbol.rpartition(".")[2]
        assert "verl_aer is disabled" in message, symbol
        assert name in message
        if name == "register_trainer":
            # Without it there is no way to answer for our names.
            assert "Unknown trainer 'aer_sync'" in case["asked"]
        else:
            assert case["asked"].startswith("PluginError: verl_aer is not available"), symbol
            assert name in case["asked"]


OUTSIDE = """
import sys, warnings
warnings.simplefilter("ignore")
import importlib.util
from pathlib import Path
folder = Path(importlib.util.find_spec("verl").origin).parent
read_text = open
import builtins
def opened(path, *args, **kwargs):
    file = read_text(path, *args, **kwargs)
    if str(path) == str(folder / "version" / "version"):
        import io
        return io.StringIO(sys.argv[1])
    return file
builtins.open = opened
import verl
builtins.open = read_text
assert verl.__version__ == sys.argv[1], verl.__version__
from verl.trainer.ppo.v1 import get_trainer_cls
print(get_trainer_cls("sync").__module__)
try:
    get_trainer_cls("aer_sync")(config=None)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(("version", "stands_aside"), [("0.9.0", True), ("0.10.0", True), ("0.10.0.dev", False)])
def test_another_version_is_left_alone(version, stands_aside):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OUTSIDE, version], capture_output=True, text=True, check=True
    )
    stock, asked = result.stdout.split("\n", 1)
    assert stock == "verl.trainer.ppo.v1.trainer_sync"
    expected = f"supports veRL 0.9.1 to below 0.10, and {version} is installed"
    assert (expected in asked) is stands_aside
    assert asked.startswith("PluginError") is stands_aside
    assert (expected in result.stderr) is stands_aside
