"""veRL's agent loop for short single-turn text rollouts, at a fifth of its cost.

On a CPU veRL's agent loop spends about 15 ms per rollout. It builds the loop from the config each time, tokenizes the
prompt again for each of its rollouts, and makes separate calls of load balancer, server, reward worker and
TransferQueue for each. Here one loop serves all rollouts, a prompt is tokenized once, the reward is computed in the
same process, and calls at about the same time are grouped into one. Prompts, sampling and rows are veRL's.

Other rollouts take veRL's path: agent loops from a config file or with tools, models with images, distillation, and a
server client that resumes interrupted rollouts. The legacy trainer needs veRL's own manager.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import ray
import torch
import transfer_queue as tq
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, DictConfigWrap
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.rollout.llm_server import LLMServerClient

SINGLE_TURN = "single_turn_agent"
ONLY_SERVER = "only server"
"""Request id for which the only server is acquired. It is never released."""

PUT_SECONDS = 0.005
"""Time that a finished rollout waits for others before it is written to TransferQueue."""


class Together:
    """Group items for some time and process them in one call. Each caller gets the result of its item.

    Args:
        call: takes the items of a group and returns one result per item. A result that is an exception is raised at the
            caller of its item.
        seconds: time from the first item to the call. 0 groups the items of one turn of the event loop.
    """

    def __init__(self, call: Callable[[list[Any]], Awaitable[list[Any]]], seconds: float) -> None:
        self._call = call
        self._seconds = seconds
        self._waiting: list[tuple[Any, asyncio.Future]] = []
        self._tasks: set[asyncio.Task] = set()

    async def __call__(self, item: Any) -> Any:
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        self._waiting.append((item, answer))
        if len(self._waiting) == 1:
            loop.call_later(self._seconds, self._hand_over)
        return await answer

    def _hand_over(self) -> None:
        task = asyncio.ensure_future(self._answer(self._waiting))
        self._waiting = []
        # The event loop holds no reference to a task.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, waiting: list[tuple[Any, asyncio.Future]]) -> None:
        try:
            answers = await self._call([item for item, _ in waiting])
        except Exception as error:
            answers = [error] * len(waiting)
        for (_, future), answer in zip(waiting, answers, strict=True):
            if future.cancelled():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


class GroupedClient(LLMServerClient):
    """veRL's client with grouped requests, for servers with ``generate_many``.

    A single server needs no load balancer, so the load balancer is called only once.
    """

    def __init__(self, client: LLMServerClient) -> None:
        super().__init__(client.config, client._load_balancer)
        self._servers: dict[str, SimpleNamespace] = {}
        self._only_server: asyncio.Task[tuple[str, SimpleNamespace] | None] | None = None

    async def _acquire_server(self, request_id: str, **extra: Any) -> tuple[str, SimpleNamespace]:
        if self._only_server is None:
            self._only_server = asyncio.create_task(self._find_only_server())
        if only := await self._only_server:
            return only
        server_id, server = await super()._acquire_server(request_id, **extra)
        return server_id, self._servers.setdefault(server_id, together(server))

    async def _find_only_server(self) -> tuple[str, SimpleNamespace] | None:
        if len(await self._load_balancer.get_all_servers.remote()) > 1:
            return None
        server_id, server = await super()._acquire_server(ONLY_SERVER)
        return server_id, together(server)

    def _release_server(self, server_id: str, request_id: str | None = None) -> None:
        if self._only_server.result() is None:
            super()._release_server(server_id, request_id)


def together(server: ray.actor.ActorHandle) -> SimpleNamespace:
    """Make a substitute for the server's handle, with ``generate.remote(...)``."""
    call = Together(server.generate_many.remote, seconds=0)
    return SimpleNamespace(generate=SimpleNamespace(remote=lambda **request: call(request)))


def reward_in_this_process(worker: RewardLoopWorker) -> SimpleNamespace:
    """Make a substitute for the handle of a reward worker, with ``compute_score.remote(data)``."""

    def compute_score(data: DataProto) -> Awaitable[dict[str, Any]]:
        # Reward managers write into the columns of a prompt, which all its rollouts share here.
        return worker.compute_score(DataProto(data.batch, copy.deepcopy(data.non_tensor_batch), data.meta_info))

    return SimpleNamespace(compute_score=SimpleNamespace(remote=compute_score))


class QuickSingleTurnLoop(SingleTurnAgentLoop):
    """veRL's single-turn loop for all rollouts of a worker. Rollouts of a prompt start at once and tokenize it once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tokenizing: dict[str, asyncio.Task[list[int]]] = {}

    async def ct_build_initial_tokens(self, messages: list[dict], **media: Any) -> list[int]:
        key = repr(messages)
        if key not in self._tokenizing:
            self._tokenizing[key] = asyncio.create_task(super().ct_build_initial_tokens(messages, **media))
            self._tokenizing[key].add_done_callback(lambda _: self._tokenizing.pop(key))
        return list(await self._tokenizing[key])

    async def ct_merge_assistant_token(
        self,
        runtime_token_ids: list[int],
        assistant_token_ids: list[int],
        response_mask: list[int],
        response_logprobs: list[float] | None = None,
        assistant_logprobs: list[float] | None = None,
    ) -> tuple[Any, list[int], list[float] | None]:
        # veRL runs this in a thread, but the handover takes longer than the work.
        builder = self.continuous_token_builder
        merged = builder.merge_assistant_tokens(runtime_token_ids, assistant_token_ids)
        return merged, *builder.align_response_metadata(
            merged, response_mask, response_logprobs, assistant_logprobs=assistant_logprobs
        )


class CPUAgentLoopWorker(AgentLoopWorkerTQ.__ray_metadata__.modified_class):
    """veRL's worker with a fast path for single-turn text rollouts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # In veRL None means that the trainer computes rewards later, with a reward model.
        if self.reward_loop_worker_handles == []:
            self.reward_loop_worker_handles = [reward_in_this_process(RewardLoopWorker(self.config))]
        self.is_quick = (
            self.processor is None
            and not self.distillation_enabled
            and not self.rollout_config.agent.agent_loop_config_path
            and type(self.llm_client) is LLMServerClient
        )
        if self.is_quick:
            self.llm_client = GroupedClient(self.llm_client)
            self._puts = {name: Together(partial(put, name), PUT_SECONDS) for name in ("train", "val")}
            self._loop = QuickSingleTurnLoop(
                trainer_config=DictConfigWrap(self.config),
                server_manager=self.llm_client,
                tokenizer=self.tokenizer,
                processor=self.processor,
                dataset_cls=self.dataset_cls,
                data_config=DictConfigWrap(self.config.data),
                hf_model_type=self.hf_model_type,
            )

    async def _run_agent_loop(
        self, sampling_params: dict[str, Any], trajectory: dict[str, Any], *, agent_name: str, **kwargs: Any
    ) -> None:
        if not self.is_quick or agent_name != SINGLE_TURN:
            return await super()._run_agent_loop(sampling_params, trajectory, agent_name=agent_name, **kwargs)
        del kwargs["trace"]
        output = await self._loop.run(dict(sampling_params), **kwargs)
        await self._compute_score([output], kwargs=kwargs)
        await self._puts["val" if trajectory["validate"] else "train"](row(output, kwargs))


class CPUAgentLoopManager(AgentLoopManagerTQ):
    """veRL's manager of :class:`CPUAgentLoopWorker` actors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(CPUAgentLoopWorker)


Row = tuple[str, dict[str, Any], dict[str, Any]]
"""Row of a rollout in TransferQueue: key, fields and tag."""


def row(output: AgentLoopOutput, prompt: dict[str, Any]) -> Row:
    """Make the row of one rollout in the format of veRL's trainer.

    Args:
        output: prompt, response and reward.
        prompt: columns of its prompt, which become part of the row.
    """
    fields = output.as_dict()
    fields.pop("multi_modal_data", None)
    prompt_length, response_length = len(fields["prompts"]), len(fields["responses"])
    fields |= prompt
    fields["input_ids"] = torch.cat([fields["prompts"], fields["responses"]])
    fields["position_ids"] = torch.arange(prompt_length + response_length)
    fields["loss_mask"] = fields["response_mask"]
    fields["multi_modal_inputs"] = {}
    tag = {
        "status": "success",
        "prompt_len": prompt_length,
        "response_len": response_length,
        "seq_len": prompt_length + response_length,
        "global_steps": prompt["global_steps"],
        "min_global_steps": output.extra_fields.get("min_global_steps"),
        "max_global_steps": output.extra_fields.get("max_global_steps"),
    }
    return f"{prompt['uid']}_{prompt['session_id']}_0", fields, tag


async def put(partition: str, rows: list[Row]) -> list[None]:
    """Write the rows to TransferQueue."""
    keys, fields, tags = zip(*rows, strict=True)
    await tq.async_kv_batch_put(
        keys=list(keys), fields=list_of_dict_to_tensordict(list(fields)), tags=list(tags), partition_id=partition
    )
    return [None] * len(rows)
