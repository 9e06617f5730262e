"""Jobs of `slurm/*.sbatch` on the real Slurm with a small policy, one rank per node, and the paths of their output."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from examples.countdown import settings
from tests.slurm.real_slurm import LOCAL, Slurm, wait_until
from tests.small_run import SMALL, logged_steps, make_inputs

FOLDER = Path(__file__).parents[2] / "slurm"
SET_BY_THE_LAUNCHER = ("trainer.nnodes=", "trainer.n_gpus_per_node=")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
PROCESSES = ("ray::", "raylet", "gcs_server", "ray.scripts", "verl_aer.launch.ray_node", "main_ppo", "VLLM")

SITE = """
HARDWARE=cpu
GPUS_PER_NODE=1
PYTHON={python}
OUT={out}
NODE_TMP={local}
: "${{JOIN_SECONDS:=90}}"
: "${{SIGNAL_SECONDS:=120}}"
: "${{CLUSTER_CHECK:=0}}"
# A cluster's nodes have the package installed; here it is the checkout.
export PYTHONPATH={root}
export VERL_LOGGING_LEVEL=WARNING
"""


def countdown_overrides(inputs: Path, steps: int) -> list[str]:
    """The Countdown example at a size that takes seconds a step: 4 prompts of 4 rollouts, two mini-batches."""
    example = settings.verl_overrides(inputs / "data", inputs / "model", seed=0, steps=steps)
    return [
        "+entropy=aer",
        *(override for override in example if not override.startswith(SET_BY_THE_LAUNCHER)),
        *SMALL,
        "trainer.save_freq=1",
        # α moves at every step: one that sits at a bound would hide a lost state.
        "entropy.target.tau=1.0",
        "entropy.controller.alpha_init=0.01",
        "entropy.controller.ki=0.05",
    ]


@dataclass
class Job:
    """A submitted job and its run."""

    slurm: Slurm
    id: str
    folder: Path
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def attempts(self) -> list[Path]:
        return sorted((self.folder / "attempts").glob("*"))

    @property
    def latest(self) -> Path:
        return self.folder / "latest"

    @property
    def results(self) -> list[str]:
        return [(attempt / "result.txt").read_text() for attempt in self.attempts]

    def steps(self, attempt: int) -> list[dict]:
        """The metrics of each step that this attempt, from 1, has logged so far."""
        found = self.attempts[attempt - 1 : attempt]
        return logged_steps(found[0] / "metrics.jsonl") if found else []

    def state_after(self, step: int) -> dict:
        return json.loads((self.folder / "checkpoints" / f"global_step_{step}" / "aer_state.json").read_text())["state"]

    def wait_for(self, happened: Callable[[], bool], seconds: float) -> None:
        """Until ``happened()``; fails with the job's logs if the time is over or the job has ended before."""

        def happened_or_ended() -> bool:
            return happened() or self.state in ENDED

        wait_until(happened_or_ended, seconds, self.explain)
        assert happened(), self.explain()

    def wait(self, seconds: float) -> str:
        """The state that the job ends in."""
        wait_until(lambda: self.state in ENDED, seconds, self.explain)
        return self.state

    @property
    def state(self) -> str:
        return self.slurm.state(self.id)

    @property
    def last_words(self) -> str:
        """The end of the job's log, from the line with which the launcher says why it failed."""
        return self.log[self.log.rindex("verl_aer: the job failed") :]

    def explain(self) -> str:
        """What there is to see when a test waits in vain."""
        logs = [self.log_path, *(self.latest.glob("*.log") if self.latest.exists() else [])]
        said = [f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs if log.exists()]
        return f"{self.slurm.job(self.id)}\n" + "\n".join(said)


class Jobs:
    """Submits jobs whose inputs and outputs lie on storage that all nodes share."""

    def __init__(self, slurm: Slurm) -> None:
        self.slurm = slurm
        self.shared = slurm.root / "shared"
        self.out = self.shared / "runs"
        self.shared.mkdir()
        make_inputs(self.shared, train_rows=64)
        self.site = self.shared / "env.sh"
        self.site.write_text(
            SITE.format(python=sys.executable, out=self.out, local=LOCAL, root=Path(__file__).parents[2])
        )

    def overrides(self, steps: int) -> list[str]:
        return countdown_overrides(self.shared, steps)

    def submit(self, *overrides: str, run: str, options: Sequence[str] = (), **environment: str) -> Job:
        """A job of both nodes, by sbatch."""
        return self._job(run, self._sbatch(*options, "train.sbatch", *overrides, RUN=run, **environment))

    def evaluate(self, *arguments: str, run: str) -> Job:
        return self._job(f"evaluations/{run}", self._sbatch("evaluate.sbatch", *arguments, RUN=run))

    def _sbatch(self, *words: str, **environment: str) -> str:
        *options, script = words[: next(i for i, word in enumerate(words) if word.endswith(".sbatch")) + 1]
        command = ["sbatch", "--parsable", "--exclusive", "--nodes=2", f"--output={self.shared}/%j.out", *options]
        command += [str(FOLDER / script), *words[len(options) + 1 :]]
        return self.slurm.command(*command, env={"SITE": str(self.site), **environment}, cwd=self.shared)

    def _job(self, run: str, number: str) -> Job:
        assert number.isdigit(), number
        return Job(self.slurm, number, self.out / run, self.shared / f"{number}.out")

    def run_script(self, script: str, *arguments: str, **environment: str) -> str:
        """What a script prints that is called as a command, and so submits itself."""
        env = {"SITE": str(self.site), "NODES": "2", "SBATCH_EXTRA": "--exclusive", **environment}
        return self.slurm.command(str(FOLDER / script), *arguments, env=env, cwd=self.shared)

    def look_at_cluster(self, job: Job, shared: Path) -> subprocess.CompletedProcess[str]:
        """`verl-aer cluster` on the first node, with the token that the job's Ray asks for."""
        node = self.slurm.nodes[0]
        pid = next(pid for pid, line in node.processes("verl_aer.launch.ray_node") if "srun" not in line)
        variables = [f"{name}={value}" for name, value in psutil.Process(pid).environ().items()]
        environment = [v for v in variables if v.startswith(("RAY_AUTH_", "PATH=", "PYTHONPATH=", "HOME="))]
        address = (job.latest / "ray-address").read_text().strip()
        command = [sys.executable, "-m", "verl_aer.cli", "cluster", "--address", address, "--shared", str(shared)]
        return node.run("env", "-i", *environment, *command)

    @contextmanager
    def anothers_ray(self) -> Iterator[Path]:
        """Ray of another job on the first node, on the ports that Ray takes by itself; yields its folder there."""
        folder, log = LOCAL / "another", self.shared / "another.log"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--temp-dir={folder}"]
        with log.open("wb") as output:
            process = self.slurm.nodes[0].popen("env", "RAY_AUTH_MODE=disabled", *command, stdout=output, stderr=output)
        try:
            wait_until(lambda: "Ray runtime started" in log.read_text(), 60, log.read_text)
            yield folder
        finally:
            for pid, _ in self.slurm.nodes[0].processes(str(folder)):
                os.kill(pid, signal.SIGKILL)
            process.kill()
            process.wait()
            for pid, _ in self.slurm.nodes[0].processes("ray::DashboardAgent", "ray::RuntimeEnvAgent"):
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(self.slurm.nodes[0].local / folder.name)

    def processes(self) -> list[str]:
        """Command lines of what belongs to Ray or to training, on any node."""
        return [line for node in self.slurm.nodes for _, line in node.processes(*PROCESSES)]

    def left_behind(self) -> list[str]:
        """What a job must not leave: processes, and files on the nodes' own disks."""
        return self.processes() + [str(path) for node in self.slurm.nodes for path in node.local.iterdir()]

    def clean(self) -> None:
        """Ends what a failed test has left, and removes all runs."""
        self.slurm.command("scancel", "--user=root")
        wait_until(lambda: not self.slurm.command("squeue", "-h"), 60, lambda: self.slurm.command("squeue"))
        for node in self.slurm.nodes:
            shutil.rmtree(node.local / "ray", ignore_errors=True)
        shutil.rmtree(self.out, ignore_errors=True)
