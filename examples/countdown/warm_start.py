"""Train the initial policy by supervision: it solves easy problems, some of the middle ones and few hard ones.

    python -m examples.countdown.warm_start --out models/countdown

The settings determine the result, up to rounding that differs between machines. A folder with a model from the same
settings is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from examples.countdown.model import build_model, build_tokenizer, save
from examples.countdown.prepare import held_out_canonicals, train_problems
from examples.countdown.rollouts import measure
from examples.countdown.task import LEVELS, random_expression, random_problem
from verl_aer._progress import ProgressDisplay

SETTINGS_FILE = "warm_start.json"
MEASURED_PROMPTS = 256
GROUP = 8
IGNORED = -100
"""The label that cross entropy ignores."""


@dataclass
class WarmStartSettings:
    """All settings that determine the policy."""

    seed: int = 0
    steps: int = 1000
    batch: int = 128
    learning_rate: float = 3e-3
    warmup_steps: int = 20
    wrong_share: float = 0.45

    def learning_rate_at(self, step: int) -> float:
        """Compute lr · min(1, step / warmup) · (1 + cos(π step / steps)) / 2, step counted from 1."""
        warmup = min(1.0, step / self.warmup_steps)
        return self.learning_rate * warmup * (1 + math.cos(math.pi * step / self.steps)) / 2


def demonstrations(
    rng: np.random.Generator, settings: WarmStartSettings, excluded: frozenset[tuple]
) -> list[tuple[str, str]]:
    """Draw a batch of (prompt, answer), cycling through the levels.

    The answer is a right one, or with probability `wrong_share` any expression of the problem's numbers.
    The wrong ones imitate an imperfect corpus: they leave the policy with probability mass that GRPO can remove.
    """
    drawn = []
    for i in range(settings.batch):
        problem, answer = random_problem(rng, LEVELS[i % len(LEVELS)], excluded)
        if rng.random() < settings.wrong_share:
            answer = random_expression(rng, problem.numbers)
        drawn.append((problem.prompt, answer))
    return drawn


def encode(drawn: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids (batch, width), padded on the right, and labels for the answers and their ends only."""
    texts = [f"{prompt}{answer}{tokenizer.eos_token}" for prompt, answer in drawn]
    # Padding comes last and attention is causal, so no answer attends to it and no mask is needed.
    ids = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")["input_ids"]
    position = torch.arange(ids.shape[1])
    start = torch.tensor([len(prompt) for prompt, _ in drawn]).unsqueeze(1)
    end = start + torch.tensor([len(answer) + 1 for _, answer in drawn]).unsqueeze(1)
    return ids, torch.where((start <= position) & (position < end), ids, IGNORED)


def train(settings: WarmStartSettings) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Minimize the cross entropy of demonstrations of random problems, without held-out ones."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, settings.seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, betas=(0.9, 0.99))
    rng = np.random.default_rng([settings.seed, 1])
    excluded = held_out_canonicals()
    with ProgressDisplay(settings.steps) as display:
        for step in range(1, settings.steps + 1):
            ids, labels = encode(demonstrations(rng, settings, excluded), tokenizer)
            loss = model(input_ids=ids, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate_at(step)
            optimizer.step()
            display.show(step, f"steps of the warm start, loss {loss.item():.3f} nats/token")
    return model.eval(), tokenizer


def is_done(out: Path, settings: WarmStartSettings) -> bool:
    """Check whether `out` has a complete model with these settings."""
    recorded = out / SETTINGS_FILE
    return recorded.exists() and json.loads(recorded.read_text()) == asdict(settings)


def warm_start(out: Path, settings: WarmStartSettings) -> bool:
    """Train into `out` unless it is done. Returns whether it trained.

    The folder gets its name only when it is complete.
    """
    if is_done(out, settings):
        return False
    model, tokenizer = train(settings)
    temporary = out.with_name(f"{out.name}.tmp{os.getpid()}")
    save(model, tokenizer, temporary)
    (temporary / SETTINGS_FILE).write_text(json.dumps(asdict(settings), indent=2) + "\n")
    if out.exists():
        shutil.rmtree(out)
    os.replace(temporary, out)
    return True


def main() -> None:
    defaults = WarmStartSettings()
    parser = argparse.ArgumentParser(description="Train Countdown's initial policy and measure it.")
    parser.add_argument("--out", type=Path, default=Path("models/countdown"), help="folder for the model")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    arguments = parser.parse_args()
    settings = WarmStartSettings(seed=arguments.seed, steps=arguments.steps)
    if not warm_start(arguments.out, settings):
        print(f"{arguments.out} already has this model")
    model = AutoModelForCausalLM.from_pretrained(arguments.out)
    tokenizer = AutoTokenizer.from_pretrained(arguments.out)
    problems = train_problems(MEASURED_PROMPTS, seed=0)
    print(measure(model, tokenizer, problems, samples=GROUP, seed=0).report())


if __name__ == "__main__":
    main()
