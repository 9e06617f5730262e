"""Jobs on a real Slurm of two nodes: trained, re-queued, pre-empted, cancelled, and failed in every possible wait."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.slurm.jobs import Job, Jobs
from tests.slurm.real_slurm import LOCAL
from verl_aer.cli.main import main as verl_aer
from verl_aer.evaluation.samples import read_run
from verl_aer.reports.metrics_log import read_metrics_log

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

START_SECONDS = 300
"""Most that a job may take to its first step: two nodes on two busy cores."""
END_SECONDS = 90
"""Most that a job may take to its end, once there is a reason for it."""
ENDED_BY_SLURM = "Slurm ended the job: cancelled, out of time, pre-empted or re-queued"


def latest_step(run: Path) -> int:
    tracker = run / "checkpoints" / "latest_checkpointed_iteration.txt"
    return int(tracker.read_text() or 0) if tracker.exists() else 0


def test_a_job_that_is_preempted_and_requeued_goes_on_with_its_alpha_and_finishes(jobs: Jobs, capsys):
    steps = 10
    job = jobs.submit(*jobs.overrides(steps), "trainer.save_freq=1000", run="moved")
    job.wait_for(lambda: job.steps(1) != [], START_SECONDS)
    urgent = jobs.slurm.command("sbatch", "--parsable", "-p", "high", "-N2", "--exclusive", "--wrap", "sleep 1")
    job.wait_for(lambda: len(job.attempts) == 2, END_SECONDS)
    assert jobs.slurm.state(urgent) == "COMPLETED"
    # Pre-emption: the checkpoint of the step in which it was asked for, and of no other.
    saved = latest_step(job.folder)
    assert [path.name for path in (job.folder / "checkpoints").glob("global_step_*")] == [f"global_step_{saved}"]
    assert len(job.steps(1)) == saved < steps
    assert not (job.folder / "checkpoints" / "stop_requested").exists()

    # The job is re-queued by hand: nothing is asked for, and what was trained since is trained again.
    job.wait_for(lambda: job.steps(2) != [], START_SECONDS)
    jobs.slurm.command("scontrol", "requeue", job.id)
    assert job.wait(END_SECONDS + START_SECONDS) == "COMPLETED", job.explain()
    assert jobs.left_behind() == []
    assert [attempt.name for attempt in job.attempts] == [f"00{n + 1}-job{job.id}-restart{n}" for n in range(3)]
    assert os.readlink(job.latest) == f"attempts/{job.attempts[2].name}"
    assert job.results == [
        "re-queued: stopped with a checkpoint\n",
        f"failed (143)\n{ENDED_BY_SLURM} (see sacct -j {job.id})\n",
        "finished\n",
    ]
    assert job.log.splitlines()[-1].endswith(f"finished; metrics in {job.folder}/metrics.jsonl")

    # Two nodes, a rank and a rollout replica on each.
    for number in (2, 3):
        said = (job.attempts[number - 1] / "train.log").read_text()
        assert "[verl_aer] training: FSDP2, world size 2, cpu:gloo" in said
        assert "[verl_aer] rollout: 2 replica(s) of" in said
        assert {node.address for node in jobs.slurm.nodes} <= set(re.findall(r"10\.211\.77\.1[12]", said))
        # α and H₀ resume where the checkpoint left them.
        state = job.state_after(saved)
        assert f"resumed after step {saved}: alpha {state['alpha']!r}, initial entropy" in said
        first = job.steps(number)[0]
        assert (first["training/global_step"], first["aer/alpha"]) == (saved + 1, state["alpha"])
        assert first["aer/initial_entropy"] == state["initial_entropy"] == job.steps(1)[0]["aer/initial_entropy"]
        assert state["alpha"] != 0.01
    shards = (job.folder / "checkpoints" / f"global_step_{steps}" / "actor").glob("model_world_size_2_rank_*.pt")
    assert len(list(shards)) == 2
    # The log of all attempts is one, whose every α follows from the entropies.
    assert [row.step for row in read_metrics_log(job.folder / "metrics.jsonl")] == list(range(1, steps + 1))
    assert verl_aer(["simulate", "--replay", str(job.folder / "metrics.jsonl")]) == 0
    assert "alphas recomputed, largest difference 0\n" in capsys.readouterr().out

    again = jobs.submit(*jobs.overrides(steps), "trainer.save_freq=1000", run="moved")
    assert again.wait(END_SECONDS) == "COMPLETED"
    assert "already finished" in again.log
    assert len(job.attempts) == 3


def test_a_cancelled_job_leaves_nothing_and_its_nodes_were_looked_at(jobs: Jobs):
    job = jobs.submit(*jobs.overrides(steps=1000), run="cancelled", CLUSTER_CHECK="1")
    job.wait_for(lambda: any("ray::WorkerDict" in line for line in jobs.processes()), START_SECONDS)
    looked = (job.latest / "cluster.log").read_text()
    for node in jobs.slurm.nodes:
        assert re.search(rf"^{node.name} +{node.address} .* ok +[+-]0\.\d\d s$", looked, flags=re.MULTILINE), looked
    assert looked.splitlines()[-1] == "nothing is missing"
    apart = jobs.look_at_cluster(job, shared=LOCAL)
    assert apart.returncode == 1, apart.stderr
    assert f"FAIL  n2: shared storage  cannot write {LOCAL}: No such file or directory" in apart.stdout

    jobs.slurm.command("scancel", job.id)
    assert job.wait(END_SECONDS) == "CANCELLED"
    assert jobs.left_behind() == []
    assert job.last_words.startswith("verl_aer: the job failed (exit code 143): " + ENDED_BY_SLURM)


def test_a_ray_head_that_dies_ends_the_job_and_not_another_ray_on_its_node(jobs: Jobs):
    with jobs.anothers_ray() as anothers:
        # Over IPv6, which this interface has alone.
        job = jobs.submit(*jobs.overrides(steps=1000), run="headless", INTERFACE="six0")
        job.wait_for(lambda: (job.latest / "train.log").exists(), START_SECONDS)
        assert (job.latest / "ray-address").read_text().startswith(f"[{jobs.slurm.nodes[0].address6}]:")
        jobs.slurm.nodes[0].kill(f"gcs_server --log_dir={LOCAL}/ray-{job.id}")
        assert job.wait(END_SECONDS) == "FAILED"
        assert job.last_words.startswith("verl_aer: the job failed (exit code 1): Ray ended on n1"), job.log
        assert "gcs_server [exit code=-9]" in job.last_words
        alive = "\n".join(line for _, line in jobs.slurm.nodes[0].processes(str(anothers)))
        assert "raylet" in alive
        assert "gcs_server" in alive
    assert jobs.left_behind() == []


def test_a_node_that_never_joins_ends_the_job_and_is_named(jobs: Jobs):
    # Each node has this interface, and it leads nowhere: the head cannot be reached from the other node.
    job = jobs.submit(*jobs.overrides(steps=1), run="apart", INTERFACE="mgmt0", JOIN_SECONDS="15")
    assert job.wait(END_SECONDS) == "FAILED"
    assert "Failed to connect to GCS at address 192.168.11.1" in job.last_words, job.log
    assert job.last_words.splitlines()[-1] == (
        "verl-aer cluster: after 15 s the cluster is incomplete: n2 has not joined"
    )
    assert jobs.left_behind() == []


def test_a_training_that_fails_ends_the_job_with_the_exception_that_began_it(jobs: Jobs):
    job = jobs.submit(*jobs.overrides(steps=1), f"actor_rollout_ref.model.path={jobs.shared}/nowhere", run="broken")
    assert job.wait(START_SECONDS) == "FAILED"
    said = job.last_words.splitlines()
    assert said[0] == "verl_aer: the job failed (exit code 1): the run failed (exit code 1):", job.log
    assert f"{jobs.shared}/nowhere" in job.last_words
    assert said[-1] == f"whole log: {job.attempts[0]}/train.log"
    assert job.results == ["failed (1)\n" + "\n".join(said).partition("(exit code 1): ")[2] + "\n"]
    assert jobs.left_behind() == []


def test_a_bad_config_ends_an_array_task_before_ray_is_started(jobs: Jobs):
    grid = {"METHODS": "none aer", "SWEEP": "grid"}
    (jobs.out / "grid" / "none-seed0").mkdir(parents=True)
    (jobs.out / "grid" / "none-seed0" / "finished.txt").write_text("job 1\n")
    submitted = jobs.run_script("sweep.sbatch", *jobs.overrides(steps=1)[1:], "entropy.controller.ki=-1", **grid)
    number = re.search(r"Submitted batch job (\d+)", submitted).group(1)
    job = Job(jobs.slurm, number, jobs.out / "grid" / "aer-seed0", jobs.out / "slurm" / f"grid-{number}.out")
    assert job.wait(END_SECONDS) == "FAILED"
    assert "entropy.controller.ki" in job.last_words
    assert not list(job.latest.glob("ray-*"))
    assert jobs.left_behind() == []


def test_a_model_is_evaluated_by_a_job(jobs: Jobs):
    reward = Path(__file__).parents[2] / "examples" / "countdown" / "reward.py"
    job = jobs.evaluate(
        *(str(jobs.shared / "model"), "--data", str(jobs.shared / "data" / "test.parquet")),
        *("--reward", f"{reward}:compute_score", "--n", "2", "--max-tokens", "8", "--batch", "500"),
        run="untrained",
    )
    assert job.wait(START_SECONDS) == "COMPLETED", job.explain()
    assert len(read_run(job.folder)) == 230
    assert re.search(r"^all +230 ", job.log, flags=re.MULTILINE)
    assert jobs.left_behind() == []
