"""The fast agent loop writes the same rows to TransferQueue as veRL's own."""

from __future__ import annotations

import asyncio
import pickle
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transfer_queue
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ
from verl.utils.tensordict_utils import get_tensordict
from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from examples.countdown.settings import verl_overrides
from tests.small_run import make_inputs
from verl_aer.cpu.agent_loop import CPUAgentLoopWorker, Together

StockWorker = AgentLoopWorkerTQ.__ray_metadata__.modified_class
PROMPTS, ROLLOUTS = 3, 4
UNANSWERABLE = "9,9,9,9=81:"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder, train_rows=8)
    with initialize_config_module("verl.trainer.config", version_base=None):
        composed = compose(
            "ppo_trainer",
            overrides=[
                "+hardware=cpu",
                *verl_overrides(folder / "data", folder / "model", seed=0),
                f"actor_rollout_ref.rollout.n={ROLLOUTS}",
                "actor_rollout_ref.rollout.calculate_log_probs=true",
            ],
        )
    OmegaConf.resolve(composed)
    return composed


def remote(**methods):
    """What looks like a Ray actor's handle and calls these functions."""
    return SimpleNamespace(**{name: SimpleNamespace(remote=method) for name, method in methods.items()})


async def generate(*, request_id, prompt_ids, sampling_params, **media):
    """An answer that the prompt decides; some take longer than others, and UNANSWERABLE has none."""
    if len(prompt_ids) == len(UNANSWERABLE):
        raise ValueError("unanswerable")
    await asyncio.sleep(0.02 * (prompt_ids[0] % 2))
    rng = random.Random(str(prompt_ids))
    tokens = [rng.randint(3, 15) for _ in range(rng.randint(1, 5))]
    log_probs = [-rng.random() for _ in tokens] if sampling_params["logprobs"] else None
    return TokenOutput(token_ids=tokens, log_probs=log_probs, num_preempted=0, extra_fields={"global_steps": 3})


class Balancer:
    """veRL's load balancer as far as clients call it, in front of these servers."""

    def __init__(self, servers):
        self.servers = servers
        self.acquired = 0

    async def acquire_server(self, request_id):
        self.acquired += 1
        return self.servers[self.acquired % len(self.servers)]

    async def all_servers(self):
        return self.servers

    async def no_fields(self):
        return []

    def handle(self):
        return remote(
            acquire_server=self.acquire_server,
            get_all_servers=self.all_servers,
            require_acquire_fields=self.no_fields,
            require_release_fields=self.no_fields,
            release_server=lambda **_: None,
        )


@pytest.fixture
def queue(monkeypatch):
    """What was put into TransferQueue, by key: fields and tag."""
    rows: dict[str, dict] = {}
    puts: list[int] = []

    async def put(key, partition_id, tag):
        rows[key] = {"partition": partition_id, "tag": tag}

    async def batch_put(keys, fields, tags, partition_id):
        puts.append(len(keys))
        for i, (key, tag) in enumerate(zip(keys, tags, strict=True)):
            rows[key] = {"partition": partition_id, "tag": tag, "fields": {n: plain(c[i]) for n, c in fields.items()}}

    monkeypatch.setattr(transfer_queue, "init", lambda: None)
    monkeypatch.setattr(transfer_queue, "async_kv_put", put)
    monkeypatch.setattr(transfer_queue, "async_kv_batch_put", batch_put)
    return SimpleNamespace(rows=rows, puts=puts)


def plain(value):
    value = getattr(value, "data", value) if not isinstance(value, torch.Tensor) else value.tolist()
    if isinstance(value, dict):
        # How long it took differs from run to run.
        return {key: item for key, item in value.items() if key not in ("generate_sequences", "compute_score")}
    return value


def prompts(validate=False):
    texts = ["2,3=5:", "3,4=12:", "4,5,6=15:"]
    columns = {
        "raw_prompt": [[{"role": "user", "content": text}] for text in texts],
        "reward_model": [{"style": "rule", "ground_truth": text[:-1]} for text in texts],
        "data_source": ["countdown_k2"] * PROMPTS,
        "extra_info": [{"index": i} for i in range(PROMPTS)],
        "index": list(range(PROMPTS)),
        "uid": [f"prompt{i}" for i in range(PROMPTS)],
    }
    settings = {"global_steps": 7, "validate": validate}
    return get_tensordict({name: objects(values) for name, values in columns.items()}, settings)


def objects(values):
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def run(worker_class, config, queue, batch, balancer):
    """The rows that a worker of the class puts for the batch."""
    queue.rows.clear()
    queue.puts.clear()

    def reward_in_another_process(data):
        return RewardLoopWorker(config).compute_score(pickle.loads(pickle.dumps(data)))

    async def work():
        reward = [] if worker_class is CPUAgentLoopWorker else [remote(compute_score=reward_in_another_process)]
        worker = worker_class(config, LLMServerClient(config, balancer.handle()), None, reward)
        await worker.generate_sequences(batch)
        await asyncio.gather(*worker.background_tasks)

    asyncio.run(work())
    return dict(queue.rows)


def server():
    async def generate_many(requests):
        return await asyncio.gather(*(generate(**request) for request in requests), return_exceptions=True)

    return remote(generate=generate, generate_many=generate_many)


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("servers", [1, 2])
def test_the_rows_are_verls_own(config, queue, validate, servers):
    balancer = Balancer([(f"server{i}", server()) for i in range(servers)])
    expected = run(StockWorker, config, queue, prompts(validate), balancer)
    assert len(queue.puts) >= PROMPTS * ROLLOUTS
    rows = run(CPUAgentLoopWorker, config, queue, prompts(validate), balancer)
    assert rows.keys() == expected.keys()
    for key, row in rows.items():
        assert row == expected[key], key
    assert len(queue.puts) < PROMPTS * ROLLOUTS


def test_a_failed_rollout_fails_its_prompt_alone(config, queue):
    balancer = Balancer([("server", server())])
    batch = prompts()
    batch["raw_prompt"][1][0]["content"] = UNANSWERABLE
    statuses = {
        worker_class: {
            key: row["tag"]["status"] for key, row in run(worker_class, config, queue, batch, balancer).items()
        }
        for worker_class in (StockWorker, CPUAgentLoopWorker)
    }
    assert statuses[CPUAgentLoopWorker]["prompt1"] == "failure"
    assert statuses[CPUAgentLoopWorker] == statuses[StockWorker]


def test_a_reward_model_that_the_trainer_asks_later_is_left_to_it(config, queue):
    balancer = Balancer([("server", server())])

    async def work():
        return CPUAgentLoopWorker(config, LLMServerClient(config, balancer.handle()), None, None)

    assert asyncio.run(work()).reward_loop_worker_handles is None


def test_a_single_server_is_acquired_once(config, queue):
    balancer = Balancer([("server", server())])
    run(CPUAgentLoopWorker, config, queue, prompts(), balancer)
    assert balancer.acquired == 1


def test_what_comes_together_goes_together_and_each_gets_its_answer():
    calls = []

    async def call(items):
        calls.append(items)
        return [ValueError(item) if item == 2 else 10 * item for item in items]

    async def work():
        together = Together(call, seconds=0)

        async def outcome(item):
            try:
                return await together(item)
            except ValueError as error:
                return f"raised {error}"

        return await asyncio.gather(*(outcome(item) for item in (1, 2, 3))), await together(4)

    assert asyncio.run(work()) == ([10, "raised 2", 30], 40)
    assert calls == [[1, 2, 3], [4]]


def test_a_failed_call_is_raised_for_each_item():
    async def call(items):
        raise RuntimeError("no server")

    async def work():
        together = Together(call, seconds=0)
        return await asyncio.gather(together(1), together(2), return_exceptions=True)

    assert [str(error) for error in asyncio.run(work())] == ["no server"] * 2
