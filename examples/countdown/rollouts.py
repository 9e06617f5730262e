"""Sample from the policy without veRL, to measure a warm start before a long run uses it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from examples.countdown.reward import is_correct
from examples.countdown.task import LONGEST_ANSWER, CountdownProblem
from verl_aer._tables import Table, as_text

RESPONSE_LENGTH = LONGEST_ANSWER + 3
"""Tokens, including the end of sequence. Two to spare, so that a wrong answer can be too long."""


@dataclass(frozen=True)
class Competence:
    """Result of `measure` for P prompts with `samples` rollouts each at temperature 1.

    Attributes:
        level: (P,) levels of the prompts.
        accuracy: (P,) share of right rollouts, which is the accuracy of a group of `samples` rollouts.
        samples: rollouts per prompt.
        entropy: nats per token, mean over all response tokens.
    """

    level: np.ndarray
    accuracy: np.ndarray
    samples: int
    entropy: float

    def report(self) -> str:
        """Write a table by level, then the entropy and the shares of hard and easy groups."""
        rows = []
        for level in [*np.unique(self.level), "all"]:
            accuracy = self.accuracy if level == "all" else self.accuracy[self.level == level]
            solved = (accuracy > 0).mean()
            rows.append([str(level), str(len(accuracy)), f"{accuracy.mean():.3f}", f"{solved:.3f}"])
        table = Table("the policy by level", ["level", "prompts", "pass@1", f"pass@{self.samples}"], rows)
        hard, easy = (self.accuracy <= 0.25).mean(), (self.accuracy >= 0.75).mean()
        shares = f"group accuracy <= 0.25: {hard:.0%}, >= 0.75: {easy:.0%}"
        return f"{as_text(table)}entropy {self.entropy:.3f} nats/token; {shares}"


@torch.no_grad()
def measure(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[CountdownProblem],
    samples: int,
    seed: int,
    rows_at_once: int = 512,
) -> Competence:
    """Sample `samples` responses per problem at temperature 1 and verify them.

    entropy = Σ m·H / Σ m, with m the mask of response tokens up to and including the end of sequence and
    H the entropy of the whole vocabulary at the sampling temperature.
    """
    torch.manual_seed(seed)
    rows = [problem for problem in problems for _ in range(samples)]
    correct: list[bool] = []
    entropy, tokens = 0.0, 0
    for start in range(0, len(rows), rows_at_once):
        chunk = rows[start : start + rows_at_once]
        prompts = tokenizer([problem.prompt for problem in chunk], padding=True, return_tensors="pt")
        out = model.generate(
            **prompts,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=RESPONSE_LENGTH,
            return_dict_in_generate=True,
            output_logits=True,
        )
        responses = out.sequences[:, prompts["input_ids"].shape[1] :]
        ends = (responses == tokenizer.eos_token_id).int()
        mask = ends.cumsum(1) - ends == 0
        log_probs = torch.stack(out.logits, dim=1).log_softmax(-1)
        token_entropy = -(log_probs.exp() * log_probs).sum(-1)
        entropy += (token_entropy * mask).sum().item()
        tokens += int(mask.sum())
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        correct += [is_correct(text, problem.key) for text, problem in zip(texts, chunk, strict=True)]
    return Competence(
        level=np.array([problem.level for problem in problems]),
        accuracy=np.array(correct, dtype=float).reshape(len(problems), samples).mean(axis=1),
        samples=samples,
        entropy=entropy / tokens,
    )
