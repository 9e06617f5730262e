"""`verl-aer evaluate`: what it checks first, and who samples which batches."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from verl_aer._processes import ProcessTree, end_with_the_parent
from verl_aer.errors import InputError
from verl_aer.evaluation.run import (
    batches_of,
    load_reward,
    read_run,
    sample_batches,
    settings_of,
    with_progress,
    write_report,
)
from verl_aer.evaluation.samples import SampleStore, read_problems
from verl_aer.extras import require_extra, require_vllm

WAIT_SECONDS = 0.5


def evaluate(args: argparse.Namespace) -> int:
    """Start or resume an evaluation, and write its report; the exit code.

    Raises:
        InputError: input that cannot be evaluated. Nothing has been loaded then.
        MissingExtraError: vLLM, matplotlib or what the reward needs is not installed.
    """
    # Before anything is sampled, not at the figure that comes last.
    require_vllm("verl-aer evaluate")
    require_extra("matplotlib", "verl-aer evaluate")
    # Imported here: veRL and torch take seconds.
    from verl_aer.evaluation.merge_checkpoint import loadable_model
    from verl_aer.evaluation.sampler import Sampler, Sampling

    sampling = Sampling(args.n, args.temperature, args.top_p, args.max_tokens, args.seed)
    found = sampling.problems() + [
        f"--{name} has to be at least 1"
        for name in ("batch", "tensor-parallel", "data-parallel")
        if getattr(args, name.replace("-", "_")) < 1
    ]
    if found:
        raise InputError("; ".join(found))
    reward = load_reward(args.reward)
    batches = batches_of(read_problems(args.data), args.batch)
    out = args.out or Path("evaluations") / Path(args.model).name
    settings = settings_of(args.model, args.data, vars(sampling), args.reward, args.batch, len(batches))
    store = SampleStore(out, settings)
    missing = store.missing(len(batches))
    if args.shard is not None:
        mine = [number for number in missing if number % args.data_parallel == args.shard]
        if mine:
            end_with_the_parent(args.parent)
            sampler = Sampler(loadable_model(args.model), sampling, args.tensor_parallel)
            with_progress(sample_batches(batches, mine, store, sampler, reward), len(mine))
        sys.stdout.flush()
        sys.stderr.flush()
        # What vLLM has loaded complains when the interpreter takes it down; all that matters is on the disk.
        os._exit(0)
    if missing:
        loadable_model(args.model)  # merged before the shards, each of which would do it
        _run_shards(args, out)
    print(write_report(out, read_run(out), Path(args.model).name), end="")
    print(f"written: {out}/summary.json, summary.md, pass_at_k.png, samples/")
    return 0


def _run_shards(args: argparse.Namespace, out: Path) -> None:
    """One process for each copy of the model, with its own GPUs where there are several copies.

    This process never loads vLLM: if that dies, what is said last is said here.

    Raises:
        InputError: one of them failed; the others have been ended, and what is whole is kept.
    """
    command = [sys.executable, "-m", "verl_aer.cli", *args.arguments, "--out", str(out), "--parent", str(os.getpid())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = visible.split(",") if visible else [str(number) for number in range(_gpus())]
    if args.data_parallel == 1:
        devices = []  # all of them, as vLLM finds them
    if devices and len(devices) < args.data_parallel * args.tensor_parallel:
        raise InputError(
            f"--data-parallel {args.data_parallel} times --tensor-parallel {args.tensor_parallel} needs "
            f"{args.data_parallel * args.tensor_parallel} GPUs, there are {len(devices)}"
        )
    trees = []
    for shard in range(args.data_parallel):
        own = devices[shard * args.tensor_parallel : (shard + 1) * args.tensor_parallel]
        environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ",".join(own)} if own else {})}
        process = subprocess.Popen([*command, "--shard", str(shard)], env=environment, start_new_session=True)
        trees.append((process, ProcessTree(process)))
    try:
        codes: list[int | None] = [None]
        while None in codes:
            for _, tree in trees:
                tree.wait_until_gone(WAIT_SECONDS)
            codes = [process.poll() for process, _ in trees]
            failed = [shard for shard, code in enumerate(codes) if code not in (None, 0)]
            if failed:
                raise InputError(f"copy {failed[0]} of the model failed; its own message stands above")
    finally:
        for _, tree in trees:
            tree.end()


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
