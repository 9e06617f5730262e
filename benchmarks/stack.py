"""Measure the CPU seconds of a Countdown run on the real stack by process, for the start and per step of 240 rollouts.

    python -m benchmarks.stack
    python -m benchmarks.stack actor_rollout_ref.rollout.agent.agent_loop_manager_class=null reward.num_workers=1

Unlike wall-clock seconds, CPU seconds hardly depend on the load of the machine. A process that ends between two samples
is counted up to the last one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from examples.countdown.train import Run, training_command, training_environment
from tests.small_run import logged_steps, make_inputs
from verl_aer._tables import Table, as_markdown

STEPS = 8
LOOK_SECONDS = 0.25
SHAPE = [
    "data.train_batch_size=30",
    "actor_rollout_ref.actor.ppo_mini_batch_size=6",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=48",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=240",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
]


def cpu_seconds(parent: psutil.Process) -> dict[int, tuple[str, float]]:
    """Return name and CPU seconds of `parent` and each of its descendants."""
    found = {}
    for process in [parent, *parent.children(recursive=True)]:
        try:
            times = process.cpu_times()
            found[process.pid] = name_of(process.cmdline()), times.user + times.system
        except psutil.Error:
            # The process ended after the listing.
            continue
    return found


def name_of(command: list[str]) -> str:
    """Name the purpose of a process: an actor's class, the driver, the fork server, or all of Ray's daemons."""
    line = " ".join(command)
    if line.startswith(("ray::", "VLLM::")):
        return line.split()[0].split(".")[0]
    if "verl.trainer.main_ppo" in line:
        return "driver"
    return "fork server" if "forking.server" in line else "Ray's daemons and starting workers"


def main() -> int:
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        make_inputs(folder, train_rows=512)
        run = Run(folder=folder, data=folder / "data", model=folder / "model")
        command = training_command(run, "aer", seed=0, steps=STEPS, overrides=[*SHAPE, *sys.argv[1:]])
        seen: dict[int, tuple[str, float]] = {}
        at_step: dict[int, tuple[float, dict[int, tuple[str, float]]]] = {}
        begin = time.monotonic()
        with training_environment(run) as environment, open(run.log, "wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            while process.poll() is None:
                seen |= cpu_seconds(psutil.Process(process.pid))
                at_step.setdefault(len(logged_steps(run.metrics)), (time.monotonic() - begin, dict(seen)))
                time.sleep(LOOK_SECONDS)
        if process.returncode != 0:
            print(run.log.read_text(errors="replace")[-3000:])
            return process.returncode
    last = max(at_step)
    (first_time, first), (second_time, second), (last_time, end) = at_step[1], at_step[2], at_step[last]
    start, step = Counter(), Counter()
    for pid, (_, seconds) in first.items():
        start[seen[pid][0]] += seconds
    for pid, (_, seconds) in end.items():
        step[seen[pid][0]] += (seconds - second.get(pid, ("", 0.0))[1]) / (last - 2)
    rows = [[name, f"{seconds:.1f}", f"{step[name]:.2f}"] for name, seconds in start.most_common()]
    rows.append(["all", f"{start.total():.1f}", f"{step.total():.2f}"])
    rows.append(["wall clock", f"{first_time:.1f}", f"{(last_time - second_time) / (last - 2):.2f}"])
    print(as_markdown(Table("CPU seconds", ["process", "to the end of step 1", "a later step"], rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
