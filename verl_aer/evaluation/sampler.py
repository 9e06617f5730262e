"""Sample answers with vLLM offline, with veRL's prompts and one seed per answer."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

FOR_CPU = {
    # Few CPUs have bfloat16 arithmetic, and compilation takes a minute.
    "dtype": "float32",
    "enforce_eager": True,
    # With chunked prefill vLLM rewinds its seeded generator, which fails on a CPU:
    # `RuntimeError: CPU Generator does not use offset`.
    "enable_chunked_prefill": False,
}
"""Settings of vLLM on a machine without an accelerator."""


@dataclass(frozen=True)
class Sampling:
    """Sampling settings, as veRL's ``rollout.val_kwargs``. Temperature 0 takes the most likely token."""

    n: int = 32
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 2048
    seed: int = 0

    def problems(self) -> list[str]:
        bounds = {
            "--n must be at least 1": self.n >= 1,
            "--temperature must be at least 0": self.temperature >= 0,
            "--top-p must be above 0 and at most 1": 0 < self.top_p <= 1,
            "--max-tokens must be at least 1": self.max_tokens >= 1,
            "--n above 1 needs --temperature above 0, or all answers are equal": self.n == 1 or self.temperature > 0,
        }
        return [text for text, holds in bounds.items() if not holds]


class Generation(NamedTuple):
    """One answer. mean_nll: mean of -log pi of its tokens, at the sampling temperature. finish: "stop" or "length"."""

    text: str
    tokens: int
    mean_nll: float
    finish: str


class Sampler:
    """A model in vLLM."""

    def __init__(self, model: str, sampling: Sampling, tensor_parallel: int = 1) -> None:
        # Imported here: veRL and torch take seconds to import, and an evaluation's config does not need them.
        from verl_aer.cpu.detection import accelerator_present

        on_cpu = not accelerator_present()
        if on_cpu:
            from verl_aer.cpu.platform import ROLLOUT_ENVIRONMENT

            os.environ.update({name: os.environ.get(name, value) for name, value in ROLLOUT_ENVIRONMENT.items()})
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR" if on_cpu else "WARNING")
        # Imported here: vLLM reads the environment on import.
        import vllm

        self.sampling = sampling
        for_cpu: dict[str, Any] = FOR_CPU if on_cpu else {}
        self.llm = vllm.LLM(
            model,
            tensor_parallel_size=tensor_parallel,
            seed=sampling.seed,
            logprobs_mode="processed_logprobs",
            **for_cpu,
        )
        self.tokenizer = self.llm.get_tokenizer()

    def generate(self, prompts: Sequence[tuple[str, list[dict[str, str]]]]) -> list[list[Generation]]:
        """Sample n answers to each prompt, given as (problem id, messages)."""
        from vllm import TokensPrompt

        tokens = [self._tokens(messages) for _, messages in prompts for _ in range(self.sampling.n)]
        parameters = [self._parameters(name, number) for name, _ in prompts for number in range(self.sampling.n)]
        outputs = self.llm.generate([TokensPrompt(prompt_token_ids=ids) for ids in tokens], parameters, use_tqdm=False)
        answers = [_generation(output.outputs[0]) for output in outputs]
        n = self.sampling.n
        return [answers[start : start + n] for start in range(0, len(answers), n)]

    def _tokens(self, messages: list[dict[str, str]]) -> list[int]:
        if self.tokenizer.chat_template is None:
            return self.tokenizer.encode("\n".join(message["content"] for message in messages))
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )

    def _parameters(self, problem: str, number: int) -> Any:
        from vllm import SamplingParams

        digest = hashlib.sha256(f"{self.sampling.seed} {problem} {number}".encode()).digest()
        return SamplingParams(
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            max_tokens=self.sampling.max_tokens,
            seed=int.from_bytes(digest[:4], "little"),
            logprobs=0,
        )


def _generation(output: Any) -> Generation:
    log_pi = [next(iter(at.values())).logprob for at in output.logprobs]
    mean_nll = -sum(log_pi) / len(log_pi) if log_pi else 0.0
    return Generation(output.text, len(output.token_ids), mean_nll, output.finish_reason)
