"""The math reward in veRL's loader, reward managers and Ray workers."""

from __future__ import annotations

import asyncio
import os
import time

import numpy as np
import psutil
import pytest
import ray
import torch
from omegaconf import OmegaConf

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring

pytestmark = [
    pytest.mark.e2e,
    # Ray's own sockets and files, closed at shutdown.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LIMIT_S = 2.0
LATE_S = 5.0
"""Most that a limit may be late: other tests run at the same time."""
# Response, ground truth, score, reason.
ANSWERS = (
    (r"so \boxed{x^2+1}", "1+x^2", 1.0, ""),
    (r"so \boxed{\frac{1}{2}}", "0.5", 1.0, ""),
    (r"so \boxed{9^{9^{9^9}}}", "x+1", 0.0, "time limit"),
    ("I do not know\nwhat it could be.", "7", 0.0, "no answer"),
    (r"so \boxed{x^2-1}", "1+x^2", 0.0, "not equal"),
    ("The answer is 50%.", "0.5", 1.0, ""),
)


@pytest.fixture(scope="module", autouse=True)
def ray_cluster(ray_temp_dir):
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=str(ray_temp_dir))
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """A tokenizer of single characters."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = sorted({character for row in ANSWERS for character in row[0]})
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    return str(folder)


def reward_config(tokenizer_folder: str, manager: str):
    return OmegaConf.create(
        {
            "actor_rollout_ref": {"model": {"path": tokenizer_folder, "tokenizer_path": None}},
            "reward": {
                "num_workers": 1,
                "custom_reward_function": {
                    "path": "pkg://verl_aer.rewards.math_reward",
                    "name": "compute_score",
                    "reward_kwargs": {"time_limit_s": LIMIT_S},
                },
                "reward_manager": {"source": "register", "name": manager},
                "reward_model": {"enable": False},
            },
        }
    )


def answers_as_batch(tokenizer):
    from verl import DataProto

    encoded = [tokenizer.encode(response) for response, *_ in ANSWERS]
    width = max(len(tokens) for tokens in encoded)
    responses = torch.tensor([tokens + [tokenizer.pad_token_id] * (width - len(tokens)) for tokens in encoded])
    prompts = torch.full((len(ANSWERS), 2), tokenizer.eos_token_id)
    mask = torch.cat([torch.ones_like(prompts), (responses != tokenizer.pad_token_id).long()], dim=1)
    rows = {
        "data_source": np.array(["mathematics"] * len(ANSWERS), dtype=object),
        "reward_model": np.array([{"ground_truth": truth} for _, truth, *_ in ANSWERS], dtype=object),
        "extra_info": np.array([{} for _ in ANSWERS], dtype=object),
    }
    return DataProto.from_dict(
        tensors={"prompts": prompts, "responses": responses, "attention_mask": mask}, non_tensors=rows
    )


@pytest.mark.parametrize("manager", ["naive", "dapo"])
def test_verls_reward_manager_gets_the_scores_and_what_goes_with_them(tokenizer_folder, manager):
    from verl.trainer.ppo.reward import load_reward_manager
    from verl.utils import hf_tokenizer

    tokenizer = hf_tokenizer(tokenizer_folder)
    batch = answers_as_batch(tokenizer)

    async def run() -> list[dict]:
        loaded = load_reward_manager(reward_config(tokenizer_folder, manager), tokenizer)
        loaded.loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loaded.run_single(batch[row : row + 1]) for row in range(len(ANSWERS))))

    results = asyncio.run(run())
    assert [result["reward_score"] for result in results] == [score for *_, score, _ in ANSWERS]
    assert [result["reward_extra_info"]["reason"] for result in results] == [reason for *_, reason in ANSWERS]


def test_verls_reward_loop_collates_a_batch_of_ray_workers(tokenizer_folder):
    from verl.experimental.reward_loop.reward_loop import RewardLoopManager
    from verl.trainer.ppo.metric_utils import process_validation_metrics
    from verl.utils import hf_tokenizer

    batch = answers_as_batch(hf_tokenizer(tokenizer_folder))
    loop = RewardLoopManager(reward_config(tokenizer_folder, "naive"))
    scored = loop.compute_rm_score(batch)
    assert scored.batch["rm_scores"].sum(dim=1).tolist() == [score for *_, score, _ in ANSWERS]
    # A reward stands at a response's last token.
    last = batch.batch["attention_mask"].sum(dim=1) - batch.batch["prompts"].shape[1] - 1
    rows = torch.arange(len(ANSWERS))
    assert scored.batch["rm_scores"][rows, last].tolist() == [score for *_, score, _ in ANSWERS]
    assert scored.meta_info["reward_extra_keys"] == ["score", "acc", "pred", "reason"]
    assert scored.non_tensor_batch["reason"].tolist() == [reason for *_, reason in ANSWERS]
    assert scored.non_tensor_batch["acc"].tolist() == [score for *_, score, _ in ANSWERS]
    # veRL's validation takes the texts for votes and averages the numbers.
    infos = {key: scored.non_tensor_batch[key].tolist() for key in scored.meta_info["reward_extra_keys"]}
    metrics = process_validation_metrics(["mathematics"] * len(ANSWERS), ["one"] * len(ANSWERS), infos)
    assert metrics["mathematics"]["acc"]["mean@6"] == pytest.approx(0.5)
    assert "reason" not in metrics["mathematics"]
    for worker in loop.reward_loop_workers:
        ray.kill(worker)


@ray.remote(num_cpus=0)
class Caller:
    """Calls the reward as veRL's workers do, in its own thread or in one of a pool."""

    def score(self, answer: str, truth: str, thread: bool) -> tuple[dict, float]:
        from concurrent.futures import ThreadPoolExecutor

        from verl_aer.rewards.math_reward import compute_score

        def timed() -> tuple[dict, float]:
            started = time.monotonic()
            result = compute_score("m", f"\\boxed{{{answer}}}", truth, time_limit_s=LIMIT_S)
            return result, time.monotonic() - started

        if not thread:
            return timed()
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(timed).result()

    def processes(self) -> tuple[int, int]:
        """This actor's and its verifier's."""
        from verl_aer.rewards import math_reward

        return os.getpid(), math_reward._VERIFIER._process.pid


@pytest.mark.parametrize("thread", [False, True], ids=["actor's thread", "pool's thread"])
def test_hostile_answers_in_an_actor_end_at_their_limit_and_leave_nothing(thread):
    caller = Caller.remote()
    assert ray.get(caller.score.remote("x+1", "1+x", thread))[0]["score"] == 1.0
    for hostile in ("9^{9^{9^9}}", "10000000!", "(" * 450 + ")" * 450):
        result, seconds = ray.get(caller.score.remote(hostile, "x+1", thread))
        assert (result["score"], result["reason"]) == (0.0, "time limit")
        assert seconds < LIMIT_S + LATE_S
        assert ray.get(caller.score.remote("(x+1)^2", "x^2+2x+1", thread))[0]["score"] == 1.0
    processes = ray.get(caller.processes.remote())
    ray.kill(caller)
    end = time.monotonic() + 15
    while any(psutil.pid_exists(pid) for pid in processes) and time.monotonic() < end:
        time.sleep(0.1)
    assert [pid for pid in processes if psutil.pid_exists(pid)] == []
