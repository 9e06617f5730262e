"""The scripts of `slurm/` without Slurm: lint, node lists, grids, and rejected input."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "slurm"
ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "SITE": "/dev/null", "PYTHON": "true"}
"""Nothing of a Slurm that the tests themselves may run in. `true` takes the place of the config's check."""


def fake(folder: Path, **programs: str) -> dict[str, str]:
    """A PATH on which these programs come first; each is the body of a script."""
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def bash(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "-c", code, "bash", *arguments]
    env = {**ENVIRONMENT, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)


def sourced(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    parts = " ".join(f"source {FOLDER}/{part}.sh;" for part in ("job", "ray_cluster", "train_run"))
    return bash(f"{parts} {code}", **environment)


def script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return bash(f'{FOLDER}/{name}.sbatch "$@"', *arguments, **environment)


def test_shellcheck_finds_nothing_in_any_script():
    scripts = sorted(
        path.relative_to(ROOT)
        for folder in ("slurm", "examples", ".ci")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".sh", ".sbatch", ".example") or path.name == "run"
    )
    assert len(scripts) == 16, scripts
    done = subprocess.run(
        [Path(sys.executable).with_name("shellcheck"), "-x", "-P", "SCRIPTDIR", *scripts],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


# ------------------------------------------------------------------------------------------------------ node lists

NODES = 'read_settings; read_nodes; printf "<%s>" "${NODE_NAMES[@]}"'


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("n1", ["n1"]),
        ("n1\nn2\n", ["n1", "n2"]),
        ("\nn1\n\nn2\n\n", ["n1", "n2"]),
        ("n1\r\nn2\r\n", ["n1", "n2"]),
        ("  gpu-a-001 \n\tgpu-a-002\n", ["gpu-a-001", "gpu-a-002"]),
        ("dgx-01.site.org\ndgx-02.site.org", ["dgx-01.site.org", "dgx-02.site.org"]),
        ("rack1-n0001\nrack1-n0010\nrack2-n0100", ["rack1-n0001", "rack1-n0010", "rack2-n0100"]),
        ("\n".join(f"n{number:04d}" for number in range(130)), [f"n{number:04d}" for number in range(130)]),
    ],
)
def test_the_nodes_are_those_that_slurm_names(tmp_path, listed, names):
    (tmp_path / "list").write_text(listed)
    path = fake(tmp_path, scontrol=f'[ "$*" = "show hostnames gpu-[a,b]-[001-002,010]" ] && cat {tmp_path}/list')
    allocation = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "gpu-[a,b]-[001-002,010]"}
    done = sourced(NODES, **path, **allocation, SLURM_JOB_NUM_NODES=str(len(names)))
    assert (done.returncode, done.stdout) == (0, "".join(f"<{name}>" for name in names))


@pytest.mark.parametrize(
    ("scontrol", "message"),
    [
        ("echo n1", "Slurm gave 2 node(s), but scontrol show hostnames 'n[1-2]' names 1: n1"),
        ("true", "names 0: none"),
        ("echo 'Invalid node range' >&2; exit 1", "scontrol show hostnames 'n[1-2]' failed"),
    ],
)
def test_a_list_that_does_not_fit_the_allocation_is_an_error(tmp_path, scontrol, message):
    allocation = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    done = sourced(NODES, **fake(tmp_path, scontrol=scontrol), **allocation)
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[-1]


# -------------------------------------------------------------------------------------------------------- settings


def test_the_environment_wins_over_the_sites_file_and_the_example_is_one(tmp_path):
    done = sourced("read_settings; print_settings", SITE=str(FOLDER / "env.sh.example"), TIME="01:00:00")
    settings = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert (settings["TIME"], settings["SBATCH_EXTRA"], settings["GPUS_PER_NODE"]) == ("01:00:00", "--exclusive", "8")
    assert settings["OUT"] == f"{Path.cwd()}/runs"


def test_all_settings_that_are_wrong_are_named_together():
    done = script("train", NODES="none", HARDWARE="tpu", CONTAINER="pyxis")
    assert done.returncode == 2
    for words in ("NODES=none: must be a number", "HARDWARE=tpu: must be gpu or cpu", "CONTAINER_IMAGE: not set"):
        assert words in done.stderr


def test_a_sites_file_that_is_not_there_is_named():
    done = script("train", SITE="/no/env.sh")
    assert (done.returncode, "SITE=/no/env.sh: no such file" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("30:00", "1800"), ("1:00:00", "3600"), ("2-08:09:10", "202150"), ("1-00:00:00", "86400"), ("0:08", "8")]
    + [(text, "") for text in ("UNLIMITED", "INVALID", "", "NOT_SET")],
)
def test_a_time_limit_is_read_as_squeue_prints_it(limit, seconds):
    assert sourced(f"seconds_of '{limit}'").stdout.strip() == seconds


def test_a_job_that_slurm_would_stop_at_once_is_refused(tmp_path):
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1", "OUT": str(tmp_path / "out")}
    done = script("train", "+entropy=aer", **job, **fake(tmp_path, scontrol="echo n1", squeue="echo 15:00"))
    assert done.returncode == 2
    assert "the job's time limit is 900 s, and it is stopped SIGNAL_SECONDS=600 before its end" in done.stderr


@pytest.mark.parametrize(("saved", "code"), [("", 1), ("4", 1), ("5", 0)])
def test_an_attempt_that_has_saved_nothing_is_not_made_again(tmp_path, saved, code):
    (tmp_path / "checkpoints").mkdir()
    if saved:
        (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(saved)
    before = saved if code else "4"
    state = f"read_settings; DIR={tmp_path}; ATTEMPT={tmp_path}; SAVED_BEFORE='{before}'; pause() {{ :; }};"
    path = fake(tmp_path, scontrol=f'echo "$@" > {tmp_path}/asked')
    done = sourced(f"{state} requeue_without_checkpoint", SLURM_JOB_ID="7", SLURM_JOB_NUM_NODES="1", **path)
    assert done.returncode == code, done.stderr
    if code:
        assert "this attempt has saved nothing" in done.stderr.splitlines()[-1]
        assert not (tmp_path / "asked").exists()
    else:
        assert (tmp_path / "asked").read_text() == "requeue 7\n"
        assert (tmp_path / "result.txt").read_text().startswith("re-queued: the current step did not end in time")


ENDED = """
read_settings; DIR={folder}; ATTEMPT={folder}; STOP_ASKED={asked}; STOP_REQUEST={folder}/checkpoints/stop_requested
pause() {{ :; }}; true & DRIVER_PID=$!; end_of_training
"""


@pytest.mark.parametrize(
    ("left", "asked", "result", "finished", "requeued"),
    [
        ("", "", "finished", True, False),
        ("stop_requested", "1", "finished", True, False),
        ("stopped_on_request", "1", "re-queued: stopped with a checkpoint", False, True),
        ("stopped_on_request", "", "stopped on request after step 3", False, False),
    ],
)
def test_a_run_that_was_stopped_is_not_finished(tmp_path, left, asked, result, finished, requeued):
    (tmp_path / "checkpoints").mkdir()
    if left:
        (tmp_path / "checkpoints" / left).write_text("3\n")
    path = fake(tmp_path, scontrol=f"touch {tmp_path}/requeued")
    done = sourced(ENDED.format(folder=tmp_path, asked=asked), SLURM_JOB_ID="7", SLURM_JOB_NUM_NODES="1", **path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "result.txt").read_text() == f"{result}\n"
    assert (tmp_path / "finished.txt").exists() is finished
    assert (tmp_path / "requeued").exists() is requeued
    assert not (tmp_path / "checkpoints" / "stop_requested").exists()


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("trainer.nnodes=4", "NODES=4"),
        ("++trainer.default_local_dir=/elsewhere", "OUT=... and RUN=..."),
        ("trainer.resume_mode=resume_path", "RUN=..."),
        ("+ray_kwargs.ray_init.address=auto", "INTERFACE"),
    ],
)
def test_what_the_launcher_decides_is_refused_as_an_override(override, advice):
    done = script("train", "+entropy=aer", override, DRY_RUN="1")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("verl_aer: the job failed (exit code 2): " + override)
    assert advice in done.stderr


# --------------------------------------------------------------------------------------------------------- dry run


def commands(output: str) -> dict[str, list[list[str]]]:
    """The words of each command of a dry run, by the heading above it."""
    found: dict[str, list[list[str]]] = {}
    for line in output.splitlines():
        if line.startswith("# "):
            found[line[2:]] = section = []
        elif found:
            section.append(shlex.split(line))
    return found


def test_a_dry_run_shows_every_command_and_submits_nothing(tmp_path):
    path = fake(tmp_path, sbatch="echo submitted; exit 1", srun="exit 1")
    site = {
        "NODES": "2",
        "ACCOUNT": "proj",
        "PARTITION": "gpu",
        "TIME": "1:00:00",
        "SBATCH_EXTRA": "--exclusive --mem=0",
    }
    done = script(
        "train", "+entropy=aer", "data.seed=1", DRY_RUN="1", RUN="first", OUT=str(tmp_path / "o"), **path, **site
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "o").exists()
    shown = commands(done.stdout)
    (submission,) = shown["submission"]
    for word in ("--nodes=2", "--gpus-per-node=8", "--account=proj", "--partition=gpu", "--exclusive", "--mem=0"):
        assert word in submission
    assert submission[-3:] == [str(FOLDER / "train.sbatch"), "+entropy=aer", "data.seed=1"]
    head, worker, wait = shown["Ray"]
    assert "--nodelist=NODE1" in head
    assert head[head.index("-m") :][1:3] == ["verl_aer.launch.ray_node", "head"]
    assert "--nodelist=NODE2" in worker
    assert worker[worker.index("-m") :][1:3] == ["verl_aer.launch.ray_node", "worker"]
    assert wait[wait.index("cluster") :][-2:] == ["NODE1", "NODE2"]
    (training,) = shown["training"]
    assert training[-2:] == ["+entropy=aer", "data.seed=1"]
    assert {"trainer.nnodes=2", "trainer.n_gpus_per_node=8", "trainer.experiment_name=first"} <= set(training)
    assert f"trainer.default_local_dir={tmp_path}/o/first/checkpoints" in training


def test_a_dry_run_composes_the_config_and_names_its_problems():
    overrides = ["+entropy=aer", "actor_rollout_ref.rollout.n=1"]
    done = script("train", *overrides, DRY_RUN="1", PYTHON=sys.executable, HARDWARE="cpu")
    assert done.returncode == 2
    assert "but rollout.n=1" in done.stdout
    assert "default_local_dir: " in done.stdout
    assert done.stderr.splitlines()[-1] == (
        "verl_aer: the job failed (exit code 2): the config has problems, see above"
    )


def test_a_recipe_is_trained_with_its_own_settings_on_the_jobs_machines():
    recipe = str(ROOT / "examples" / "math" / "qwen3_4b.sh")
    done = script("train", "clip_higher", "data.seed=5", DRY_RUN="1", RECIPE=recipe, NODES="2", GPUS_PER_NODE="4")
    (training,) = commands(done.stdout)["training"]
    last = dict(word.partition("=")[::2] for word in training)
    assert (last["+entropy"], last["data.seed"], last["data.train_batch_size"]) == ("clip_higher", "5", "256")
    assert (last["trainer.nnodes"], last["trainer.n_gpus_per_node"]) == ("2", "4")
    assert last["trainer.default_local_dir"].endswith("/runs/run-JOB/checkpoints")
    failed = script("train", "aer", DRY_RUN="1", RECIPE="/no/recipe.sh")
    assert (failed.returncode, "RECIPE=/no/recipe.sh failed" in failed.stderr) == (2, True)


@pytest.mark.parametrize(
    ("container", "words"),
    [
        ("pyxis", ["--container-image=/i/verl.sqsh", "--container-mounts=/shared:/shared"]),
        ("apptainer", ["apptainer", "exec", "--nv", "--bind", "/shared:/shared", "/i/verl.sqsh"]),
    ],
)
def test_in_a_container_every_command_runs_inside(container, words):
    site = {"CONTAINER": container, "CONTAINER_IMAGE": "/i/verl.sqsh", "CONTAINER_MOUNTS": "/shared:/shared"}
    shown = commands(script("train", "+entropy=aer", DRY_RUN="1", NODES="2", **site).stdout)
    lines = [*shown["Ray"], *shown["training"]]
    assert len(lines) == 4
    for line in lines:
        before = line[: line.index("true")]
        assert [word for word in before if word in words] == words


def test_an_evaluation_takes_one_node(tmp_path):
    arguments = ["runs/aer/checkpoints/global_step_200", "--data", "a b.parquet", "--n", "8"]
    done = script("evaluate", *arguments, DRY_RUN="1", NODES="4", OUT=str(tmp_path))
    shown = commands(done.stdout)
    assert [word for word in shown["submission"][0] if word.startswith("--nodes")][-1] == "--nodes=1"
    (line,) = shown["evaluation"]
    assert line[line.index("evaluate") :] == [
        "evaluate",
        *arguments,
        "--out",
        f"{tmp_path}/evaluations/global_step_200",
    ]


# ----------------------------------------------------------------------------------------------------------- sweep


def sweep_cell(task: int | None, *overrides: str, **grid: str) -> subprocess.CompletedProcess[str]:
    """What an array task would run, in a job of one node."""
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1", "DRY_RUN": "1"}
    index = {} if task is None else {"SLURM_ARRAY_TASK_ID": str(task)}
    return script("sweep", *overrides, **job, **index, **grid)


@pytest.fixture
def one_node(tmp_path):
    return fake(tmp_path, scontrol="echo n1")


@pytest.mark.parametrize(
    ("methods", "settings", "seeds"),
    [
        (["aer"], {"": ""}, [0]),
        (["aer"], {"": ""}, [0, 1, 2, 5]),
        (["none", "fixed", "aer"], {"": ""}, [3]),
        (["none", "aer"], {"low": "entropy.target.tau=0.4", "high": "entropy.target.tau=0.6 data.seed=9"}, [0, 1]),
        (["none", "fixed", "aer"], {"a": "", "b": "x=1"}, [0, 1]),
    ],
)
def test_an_array_covers_its_grid_exactly_once(one_node, methods, settings, seeds):
    grid = {"METHODS": " ".join(methods), "SEEDS": " ".join(map(str, seeds))}
    if settings != {"": ""}:
        grid["SETTINGS"] = "; ".join(f"{label}: {text}" for label, text in settings.items())
    size = len(methods) * len(settings) * len(seeds)
    found = []
    for task in range(size):
        done = sweep_cell(task, "last=1", **grid, **one_node)
        assert done.returncode == 0, done.stderr
        (training,) = commands(done.stdout)["training"]
        assert training[-1] == "last=1"
        overrides = training[next(i for i, word in enumerate(training) if word.startswith("+entropy=")) : -1]
        name = next(w.removeprefix("trainer.experiment_name=") for w in training if "experiment_name" in w)
        found.append((name, tuple(overrides)))
    expected = {
        (
            f"sweep/{method}{'-' + label if label else ''}-seed{seed}",
            (
                f"+entropy={method}", f"data.seed={seed}", f"actor_rollout_ref.actor.data_loader_seed={seed}",
                f"actor_rollout_ref.actor.fsdp_config.seed={seed}", f"actor_rollout_ref.rollout.seed={seed}",
                *text.split(),
            ),
        )
        for method in methods for label, text in settings.items() for seed in seeds
    }  # fmt: skip
    assert len(found) == size == len(set(found))
    assert set(found) == expected
    outside = sweep_cell(size, **grid, **one_node)
    assert outside.returncode == 2
    assert f"submit with --array=0-{size - 1}" in outside.stderr


def test_finished_cells_are_left_out(tmp_path):
    grid = {"METHODS": "none aer", "SEEDS": "0 1", "SWEEP": "math", "OUT": str(tmp_path), "MAX_AT_ONCE": "2"}
    path = fake(tmp_path, sbatch='printf "%s\\n" "$@"')
    array = lambda: [w for w in script("sweep", **grid, **path).stdout.splitlines() if w.startswith("--array")]  # noqa: E731
    assert array() == ["--array=0,1,2,3%2"]
    for name in ("none-seed1", "aer-seed0"):
        (tmp_path / "math" / name).mkdir(parents=True)
        (tmp_path / "math" / name / "finished.txt").touch()
    assert array() == ["--array=0,3%2"]
    for name in ("none-seed0", "aer-seed1"):
        (tmp_path / "math" / name).mkdir(parents=True)
        (tmp_path / "math" / name / "finished.txt").touch()
    done = script("sweep", **grid, **path)
    assert (done.returncode, "all 4 cells of math are finished" in done.stdout) == (0, True)


def test_a_task_of_a_finished_cell_ends_at_once(tmp_path, one_node):
    folder = tmp_path / "out" / "sweep" / "aer-seed0"
    folder.mkdir(parents=True)
    (folder / "finished.txt").write_text("job 3, 2026-01-01\n")
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "1", "SLURM_ARRAY_TASK_ID": "0"}
    done = script("sweep", OUT=str(tmp_path / "out"), **job, **one_node)
    assert done.returncode == 0
    assert "is already finished (job 3, 2026-01-01); not run again" in done.stdout


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"SETTINGS": "entropy.target.tau=0.4"}, "has no label"),
        ({"SEEDS": "0 one"}, "'one' is not a number"),
    ],
)
def test_a_grid_that_cannot_be_read_is_named(grid, message):
    done = script("sweep", DRY_RUN="1", **grid)
    assert (done.returncode, message in done.stderr) == (2, True)


# ---------------------------------------------------------------------------------------------------- run's folder

OPEN = 'read_settings; open_run first "$A" "$B"; [ -n "$ATTEMPT" ] && echo "attempt ${ATTEMPT##*/}"'


def open_run(folder: Path, job: str = "7", restart: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    allocation = {"SLURM_JOB_ID": job, "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "n1"}
    settings = {"A": "+entropy=aer", "B": "data.seed=1", "OUT": str(folder / "out")}
    restarts = {"SLURM_RESTART_COUNT": restart} if restart else {}
    return sourced(OPEN, **{**allocation, **settings, **restarts, **more})


def test_each_attempt_has_a_folder_and_latest_is_the_last(tmp_path):
    # Slurm knows the job itself as running, which is no other job.
    path = fake(tmp_path, squeue="echo running")
    for restart, name in (("", "001-job7-restart0"), ("1", "002-job7-restart1")):
        done = open_run(tmp_path, restart=restart, **path)
        assert done.stdout.splitlines()[-1] == f"attempt {name}", done.stderr
        assert os.readlink(tmp_path / "out/first/latest") == f"attempts/{name}"
        assert "GPUS_PER_NODE=8" in (tmp_path / "out/first/latest/settings.txt").read_text()
        assert (tmp_path / "out/first/latest/result.txt").read_text() == "finished\n"


def test_another_runs_folder_is_refused_and_the_difference_shown(tmp_path):
    path = fake(tmp_path, squeue="true")
    assert open_run(tmp_path, **path).returncode == 0
    done = open_run(tmp_path, job="8", B="data.seed=2", **path)
    assert done.returncode == 2
    assert "  < data.seed=1\n  > data.seed=2\n" in done.stderr
    assert "belongs to a run with other settings" in done.stderr.splitlines()[-1]
    assert open_run(tmp_path, job="9", **path).stdout.splitlines()[-1] == "attempt 002-job9-restart0"


def test_a_run_that_another_job_trains_now_is_refused(tmp_path):
    path = fake(tmp_path, squeue="[ -e still_runs ] && echo 7; true")
    assert open_run(tmp_path, **path).returncode == 0
    path = fake(tmp_path, squeue="echo running")
    done = open_run(tmp_path, job="8", **path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        f"job 7 is training {tmp_path}/out/first: wait for it, or choose another run with RUN=..."
    )


def test_the_metrics_of_all_attempts_are_one_log_without_the_line_that_a_kill_cut_off(tmp_path):
    lines = {
        "001-job7-restart0": ['{"step":1,"data":{"a":1}}', '{"step":2,"data":{"a":2}}', '{"step":3,"da'],
        "002-job7-restart1": ['{"step":2,"data":{"a":5}}', '{"step":3,"data":{"a":6}}'],
    }
    for name, rows in lines.items():
        (tmp_path / "attempts" / name).mkdir(parents=True)
        (tmp_path / "attempts" / name / "metrics.jsonl").write_text("\n".join(rows))
    done = sourced(f"DIR={tmp_path}; ATTEMPT={tmp_path}/attempts/002-job7-restart1; gather_metrics")
    assert done.returncode == 0, done.stderr
    from verl_aer.reports.metrics_log import read_metrics_log

    assert [(row.step, row.data) for row in read_metrics_log(tmp_path / "metrics.jsonl")] == [
        (1, {"a": 1}), (2, {"a": 5}), (3, {"a": 6}),
    ]  # fmt: skip
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1


# ------------------------------------------------------------------------------------------- Ray without Slurm, docs


def test_a_job_of_a_ray_cluster_is_shown_and_not_submitted(tmp_path):
    environment = {**ENVIRONMENT, "OUT": "/shared/runs", "RUN": "first", "NODES": "2", "DRY_RUN": "1"}
    environment |= {"PYTHON": sys.executable, "RUNTIME_ENV": "--env HF_HOME=/shared/hf"}
    command = [str(ROOT / "examples" / "ray_cluster" / "submit.sh"), "+entropy=aer", "actor_rollout_ref.rollout.n=8"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    words = shlex.split(done.stdout.splitlines()[0])
    assert words[: words.index("--")][1:5] == ["-m", "ray.scripts.scripts", "job", "submit"]
    assert {"trainer.nnodes=2", "trainer.default_local_dir=/shared/runs/first/checkpoints"} <= set(words)
    for line in ("- " + str(ROOT / "verl_aer"), "  HF_HOME: /shared/hf", "nothing is missing"):
        assert line in done.stdout.splitlines()
    lacking = subprocess.run(command, env={**environment, "OUT": ""}, capture_output=True, text=True, check=False)
    assert (lacking.returncode, lacking.stderr) == (2, "set OUT to a folder that all nodes share\n")
