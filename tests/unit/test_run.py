"""A run with real child processes: progress, failure, stall, signals, leftovers."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

import verl_aer.integration  # noqa: F401 - veRL first, see its docstring
from verl_aer import _processes, _progress
from verl_aer._failure import explain_failure, root_cause
from verl_aer._processes import ProcessTree
from verl_aer.integration import watchdog
from verl_aer.launch import run as progress
from verl_aer.launch.run import STALL_EXIT_CODE, run_with_progress


class Run:
    """A child written in Python, its files, and what was shown of it."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "train.log"
        self.metrics = folder / "metrics.jsonl"
        self.pids = folder / "pids"
        self.stream = io.StringIO()

    def command(self, code: str) -> list[str]:
        modules = "import json, os, signal, subprocess, sys, time\n"
        names = f"metrics, pids = {str(self.metrics)!r}, {str(self.pids)!r}\n"
        return [sys.executable, "-c", modules + names + textwrap.dedent(code)]

    def go(self, code: str, steps: int = 3, **options: object) -> int:
        return run_with_progress(
            self.command(code),
            log_path=self.log,
            metrics_path=self.metrics,
            steps=steps,
            stream=self.stream,
            **options,
        )

    @property
    def shown(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    def alive(self) -> list[int]:
        written = {int(pid) for pid in self.pids.read_text().split()}
        living = psutil.process_iter(["status"])
        return [p.pid for p in living if p.pid in written and p.info["status"] != psutil.STATUS_ZOMBIE]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(_processes, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(progress, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(_progress, "LINE_INTERVAL_S", 0.0)
    return Run(tmp_path)


def test_progress_proof_lines_and_saturation_of_a_run_that_succeeds(run: Run) -> None:
    run.metrics.write_text('{"step": 99, "data": {}}\n')
    code = run.go(
        """
        print("\\x1b[36m(TaskRunner pid=123)\\x1b[0m [verl_aer] training: FSDP2", flush=True)
        print("(WorkerDict pid=124, ip=10.0.0.1) [verl_aer] training: FSDP2", flush=True)
        with open(metrics, "w") as log:
            for step in range(0, 13):
                data = {"aer/entropy": 0.5, "aer/target": 0.25, "aer/alpha": 0.125,
                        "aer/error": -0.25 + 0.5 * (step > 9),
                        "aer/saturated": float(step > 8), "aer/accuracy/mean": 0.75} if step else {"val": 1}
                log.write(json.dumps({"step": step, "data": data}) + "\\n")
        """,
        steps=12,
    )
    assert code == 0
    status = "entropy 0.500→0.250  alpha 0.1250  acc 0.75"
    steps = [line for line in run.shown if "/12 " in line]
    assert [line.split()[1] for line in steps] == [f"{step}/12" for step in range(1, 13)]
    assert all(status in line for line in steps)
    assert [line for line in run.shown if line.startswith("[verl_aer]")] == ["[verl_aer] training: FSDP2"]
    # Steps 9 to 12 are saturated: 9 with too much entropy, at the lower bound, the others with too little.
    assert run.shown[-2:] == [
        "alpha sat at its bound in 3 of 12 steps: raise entropy.controller.alpha_max",
        "alpha sat at its bound in 1 of 12 steps: lower entropy.controller.alpha_min",
    ]
    assert run.shown[-3].startswith("finished 12 of 12 steps in 0:0")
    # A log that was there before is not this run's, and is kept.
    assert "99" in run.metrics.with_name("metrics.jsonl.previous").read_text()


def test_before_the_first_step_it_says_what_it_waits_for(run: Run) -> None:
    run.go("time.sleep(0.2)")
    assert run.shown[0] == "0:00  starting Ray, FSDP2 and vLLM (usually 1-2 min)"


def test_the_cause_of_a_failure_comes_last(run: Run) -> None:
    code = run.go(
        """
        print("\\x1b[36m(TaskRunner pid=9)\\x1b[0m Traceback (most recent call last):")
        print("\\x1b[36m(TaskRunner pid=9)\\x1b[0m ValueError: the first row has no 'acc'")
        print("\\x1b[36m(TaskRunner pid=9)\\x1b[0m   return it from the reward")
        print()
        print("ray.exceptions.RayTaskError(ValueError): \\x1b[36mray::TaskRunner.run()\\x1b[39m (pid=9)")
        print("vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.", flush=True)
        sys.exit(3)
        """
    )
    assert code == 3
    assert run.shown[-4:] == [
        "the run failed (exit code 3):",
        "  ValueError: the first row has no 'acc'",
        "    return it from the reward",
        f"whole log: {run.log}",
    ]


def test_a_real_traceback_is_reduced_to_its_message(run: Run) -> None:
    code = run.go("raise RuntimeError('two\\nlines')")
    assert code == 1
    assert run.shown[-3:-1] == ["  RuntimeError: two", "  lines"]


def test_without_an_exception_the_last_lines_are_the_cause() -> None:
    problems = ["the entropy control found 1 problem:", "  1. entropy.target.tau: must be in (0, 1]"]
    assert root_cause([*problems, ""]) == problems
    only_consequences = ["ray.exceptions.ActorDiedError: The actor died"]
    assert root_cause(["noise", *only_consequences]) == only_consequences


@pytest.mark.parametrize("ours", ["WorkerDiedError", "WeightUpdateTimeoutError", "GenerationTimeoutError"])
def test_our_own_reason_is_the_cause_between_what_follows_from_it(ours: str) -> None:
    assert hasattr(watchdog, ours)
    lines = [
        f"ray.exceptions.RayTaskError({ours}): ray::TaskRunner.run()",
        "RuntimeError: no materializable trajectories",
        f"verl_aer.integration.watchdog.{ours}: server 0 failed",
        "ray.exceptions.ActorDiedError: the actor died",
    ]
    assert root_cause(lines) == lines[2:]


def test_the_cause_in_an_engine_of_vllm_is_found() -> None:
    lines = [
        "(EngineCore pid=7) Traceback (most recent call last):",
        "(EngineCore pid=7) RuntimeError: start (0) + length (768) exceeds dimension size (384).",
        "(EngineCore pid=7)",
        "[rank0]: Traceback (most recent call last):",
        "[rank0]: RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    ]
    assert root_cause(lines) == ["RuntimeError: start (0) + length (768) exceeds dimension size (384)."]
    assert root_cause([f"[rank0]: {line}" for line in ("Traceback:", "ValueError: no weights")]) == [
        "ValueError: no weights"
    ]


def test_killed_for_memory_is_said(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text("loading\n")
    assert "memory ran out" in explain_failure(-signal.SIGKILL, log)[0]


END_OF_A_RUN = """\
\x1b[36m(TaskRunnerV1 pid=812)\x1b[0m WARNING 11-24 17:40:11 [vllm.py:602] ImportError: no flashinfer, falling back
(TaskRunnerV1 pid=812) step:2 - actor/aer/entropy:0.62 - aer/alpha:0.0004 - training/global_step:2
\rTraining Progress: 100%|██████████| 2/2 [00:21<00:00, 10.6s/it]
\x1b[36m(TaskRunnerV1 pid=812)\x1b[0m ("Final validation metrics: {'val-core/countdown_k2/acc/mean@8': "
\x1b[36m(TaskRunnerV1 pid=812)\x1b[0m  "np.float64(0.225), 'val-aux/countdown_k3/score/best@8/mean': np.float64(0.31)}")
"""
TEARDOWN = """\
(EngineCore pid=977) vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.
(raylet) ray.exceptions.ActorDiedError: The actor died because its owner has died.
"""


def test_a_run_that_succeeded_did_not_fail(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    whole = f"whole log: {log}"
    for end in (
        END_OF_A_RUN + TEARDOWN,
        "(TaskRunnerV1 pid=812) 'Final validation metrics: None'\n",
        "(TaskRunnerV1 pid=812) [verl_aer] stopped on request after step 3 of 9; the checkpoint is in runs/x\n",
    ):
        log.write_text("ValueError: a worker tried something else\n" + end)
        assert explain_failure(None, log) == ["the run succeeded: it trained to its end", whole]
    assert explain_failure(0, log) == ["the run succeeded (exit code 0)", whole]


def test_without_an_exit_code_the_log_says_what_it_knows(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text(END_OF_A_RUN.replace("Final", "Initial") + TEARDOWN + "ValueError: no row has 'acc'\n")
    assert explain_failure(None, log)[:2] == ["the run failed:", "  ValueError: no row has 'acc'"]
    log.write_text(END_OF_A_RUN + TEARDOWN + "OSError: no space left on device\n")
    assert explain_failure(None, log)[:2] == [
        "the run trained to its end; after that:",
        "  OSError: no space left on device",
    ]
    log.write_text("step 1\nstep 2\n")
    assert explain_failure(None, log)[:2] == [
        "the log contains neither the end of training nor an exception; its last lines:",
        "  step 1",
    ]


def test_a_stalled_run_is_stopped_with_everything_it_started(run: Run) -> None:
    code = run.go(
        """
        # Ray's way: a daemon in another process group; and a worse one: in another session, deaf to SIGTERM, orphaned.
        deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
        group = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], process_group=0) \\
            if sys.version_info >= (3, 11) else subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        session = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
        open(pids, "w").write(f"{os.getpid()} {group.pid} {session.pid}")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)
        """,
        stall_seconds=1.0,
    )
    assert code == STALL_EXIT_CODE
    assert "no output and no metrics for 1 s" in run.shown[-2]
    assert run.alive() == []


def test_output_alone_keeps_a_run_alive(run: Run) -> None:
    assert run.go("for _ in range(8): time.sleep(0.15); print('.', flush=True)", stall_seconds=0.9) == 0


def test_leftovers_of_a_run_that_ended_well_are_ended(run: Run) -> None:
    code = run.go(
        """
        left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        open(pids, "w").write(str(left.pid))
        time.sleep(0.5)
        """
    )
    assert code == 0
    assert run.alive() == []


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_us_ends_the_run(run: Run, sent: signal.Signals) -> None:
    handler = signal.getsignal(sent)
    code = run.go(
        f"""
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open(pids, "w").write(f"{{os.getpid()}} {{child.pid}}")
        os.kill({os.getpid()}, {sent.value})
        time.sleep(60)
        """
    )
    assert code == 128 + sent
    assert run.shown[-1] == f"stopped by {sent.name} at step 0 of 3"
    assert run.alive() == []
    assert signal.getsignal(sent) is handler


def test_a_child_killed_by_a_signal_gives_its_shell_exit_code(run: Run) -> None:
    assert run.go("os.kill(os.getpid(), signal.SIGKILL)") == 128 + signal.SIGKILL


def test_the_tree_leaves_other_processes_alone() -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        tree = ProcessTree(child)
        assert tree.watch() == [child.pid]
        tree.end()
        assert child.poll() == -signal.SIGTERM
        assert other.poll() is None
    finally:
        for process in (other, child):
            process.kill()
            process.wait()


def test_bar_on_a_terminal_fits_into_80_columns(run: Run) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    run.stream = Terminal()
    data = {"aer/entropy": 0.5, "aer/target": 0.25, "aer/alpha": 0.125, "aer/accuracy/mean": 0.75}
    rows = [json.dumps({"step": step, "data": data}) for step in (1, 2, 100)]
    code = run.go(
        f"""
        print("[verl_aer] rollout: vLLM", flush=True)
        with open(metrics, "w") as log:
            for row in {rows!r}:
                log.write(row + "\\n"); log.flush(); time.sleep(0.3)
        """,
        steps=800,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert code == 0
    text = run.stream.getvalue()
    assert "100/800" in text
    assert "entropy 0.500→0.250  alpha 0.1250  acc 0.75  ETA" in text
    assert "[verl_aer] rollout: vLLM" in text
    assert "…" not in text


@pytest.mark.parametrize(("ours", "status"), [(True, "alpha 0.1250"), (False, "acc 0.75")])
def test_a_score_stands_for_accuracy_only_in_a_log_of_plain_verl(run: Run, ours: bool, status: str) -> None:
    data = {"critic/score/mean": 0.75, **({"aer/alpha": 0.125} if ours else {})}
    row = json.dumps({"step": 1, "data": data})
    code = run.go(
        f"""
        with open(metrics, "w") as log:
            log.write({row!r} + "\\n")
        """,
        steps=1,
    )
    assert code == 0
    (step,) = [line for line in run.shown if "1/1 " in line]
    assert step.endswith(status)
