"""Our metrics in veRL's loggers: the same names and values in each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LOG_TWO_STEPS = """
import json, sys
from verl.utils.tracking import Tracking
from verl_aer import EntropyControl, parse_entropy_config
from verl_aer.control.metrics import decision_metrics

control = EntropyControl(parse_entropy_config({"method": "aer", "controller": {"alpha_init": 0.0123}}))
logger = Tracking("project", "run", ["console", "file", "tensorboard", "wandb"], config={"trainer": {}})
seen = []
for step, entropy in enumerate([0.7, 0.2], start=1):
    seen.append(decision_metrics(control.observe(entropy, step), control.state))
    logger.log(data=seen[-1], step=step)
logger.finish()
print("SEEN" + json.dumps(seen))
"""


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict], str]:
    """Two steps logged to all four; the folder, what was logged, and what was printed."""
    folder = tmp_path_factory.mktemp("tracking")
    environment = {
        **os.environ,
        "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl"),
        "TENSORBOARD_DIR": str(folder / "tensorboard"),
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_SILENT": "true",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-c", LOG_TWO_STEPS], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (seen,) = [line.removeprefix("SEEN") for line in done.stdout.splitlines() if line.startswith("SEEN")]
    return folder, json.loads(seen), done.stdout


def test_the_file_holds_every_digit(logged):
    folder, seen, _ = logged
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["data"] for line in lines] == seen


def test_the_console_shows_every_metric(logged):
    _, seen, printed = logged
    for name in seen[1]:
        assert f"{name}:" in printed, name


def test_tensorboard_has_every_metric(logged):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, seen, _ = logged
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(seen[0]) | set(seen[1])
    for name, value in seen[1].items():
        assert events.Scalars(name)[-1].value == pytest.approx(value, rel=1e-6), name


def test_wandb_has_every_metric_offline(logged):
    folder, seen, _ = logged
    (run,) = folder.glob("wandb/offline-run-*/*.wandb")
    content = run.read_bytes()
    for name in seen[1]:
        assert name.encode() in content, name
