"""Measure the errors of the entropies of veRL's engines, in value and gradient, with bfloat16 logits.

    python -m benchmarks.precision

Each line calls veRL's own function in the types that an engine uses, on the same logits, and compares with float64:

- VeOmni, TorchTitan and Automodel call `entropy_from_logits` under CUDA's autocast, which computes softmax, logsumexp
  and sum in float32; without a GPU `CudaAutocast` does. Before that, VeOmni and Automodel divide by the temperature in
  bfloat16, as veRL's own FSDP engine does. *Without autocast* is the same function in bfloat16 throughout.
- Megatron calls `vocab_parallel_entropy` in the type of the logits: float32 if Megatron's `Float16Module` returns
  the last stage's output, as by default, and bfloat16 otherwise.

The logits are synthetic, and peaked like those of a policy: most tokens are nearly certain, some are open.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode
from verl.utils.torch_functional import entropy_from_logits

from benchmarks.timing import DEVICE, GPU, machine
from verl_aer._tables import Table, as_markdown
from verl_aer.kernels import logprob_and_entropy
from verl_aer.parts.measure import Full

TOKENS, VOCABULARY = 256, 151_936
TEMPERATURES = (1.0, 0.8)

Entropy = Callable[[torch.Tensor, float], torch.Tensor]
"""Function from bfloat16 logits (T, V) and a temperature to entropies (T,)."""


class CudaAutocast(TorchFunctionMode):
    """Emulate CUDA's autocast for the operations of an entropy; the CPU's autocast keeps them in bfloat16."""

    IN_FLOAT32 = (torch.nn.functional.softmax, torch.logsumexp, torch.sum)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.IN_FLOAT32:
            args = (args[0].float(), *args[1:])
        return func(*args, **kwargs or {})


def autocast() -> Any:
    return torch.autocast("cuda", dtype=torch.bfloat16) if GPU else CudaAutocast()


def exactly(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return Full().entropy(logits / temperature)


def ours(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return logprob_and_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=DEVICE), temperature)[1]


def under_autocast(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    with autocast():
        return entropy_from_logits(logits / temperature)


def without_autocast(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return entropy_from_logits(logits / temperature)


def megatron(dtype: torch.dtype) -> Entropy:
    """Call Megatron's function with one rank. It needs only a process group of Megatron, here the default group."""
    state = types.ModuleType("megatron.core.parallel_state")
    state.get_tensor_model_parallel_group = lambda: None
    core = types.ModuleType("megatron.core")
    core.parallel_state = state
    modules = {"megatron": types.ModuleType("megatron"), core.__name__: core, state.__name__: state}
    with mock.patch.dict(sys.modules, modules):
        from verl.utils.megatron.tensor_parallel import vocab_parallel_entropy

    return lambda logits, temperature: vocab_parallel_entropy(logits.to(dtype).clone().div_(temperature))


def made_logits() -> torch.Tensor:
    """Make noise over the vocabulary plus twenty candidates above it, whose spread differs between tokens."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(TOKENS, VOCABULARY, generator=generator)
    spread = torch.empty(TOKENS, 1).uniform_(1.0, 30.0, generator=generator)
    candidates = 20 + spread * torch.randn(TOKENS, 20, generator=generator)
    place = torch.stack([torch.randperm(VOCABULARY, generator=generator)[:20] for _ in range(TOKENS)])
    return logits.scatter_(-1, place, candidates).bfloat16().to(DEVICE)


def both_ways(entropy: Entropy, logits: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the entropies and the gradient of their sum, in float64."""
    leaf = logits.clone().requires_grad_()
    value = entropy(leaf, temperature)
    value.sum().backward()
    return value.detach().double(), leaf.grad.double()


def measure(logits: torch.Tensor, temperature: float) -> str:
    wanted, gradient = both_ways(exactly, logits.double(), temperature)
    size = f"{TOKENS} tokens, vocabulary {VOCABULARY:,}"
    heading = f"### Temperature {temperature}: {size}, mean entropy {wanted.mean():.3f}"
    header = ["", "mean error", "error per token, sd", "largest", "entropies <= 0", "gradient, relative error"]
    rows = []
    paths: dict[str, Entropy] = {
        "ours (FSDP)": ours,
        "VeOmni, TorchTitan, Automodel": under_autocast,
        "the same without autocast": without_autocast,
        "Megatron, float32 logits": megatron(torch.float32),
        "Megatron, bfloat16 logits": megatron(torch.bfloat16),
    }
    for name, entropy in paths.items():
        found, grad = both_ways(entropy, logits, temperature)
        error = found - wanted
        off = (grad - gradient).norm() / gradient.norm()
        errors = [f"{error.mean():+.5f}", f"{error.std():.5f}", f"{error.abs().max():.4f}"]
        rows.append([name, *errors, f"{(found <= 0).double().mean():.1%}", f"{off:.2%}"])
    return f"{heading}\n\n{as_markdown(Table(heading, header, rows))}"


def main() -> int:
    # Compiling Megatron's function needs a compiler and changes no result.
    torch.compiler.set_stance("force_eager")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    print(f"{machine()}\n")
    logits = made_logits()
    for temperature in TEMPERATURES:
        print(measure(logits, temperature), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
