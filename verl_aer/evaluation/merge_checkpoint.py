"""Merge the FSDP shards of a veRL checkpoint into a model that vLLM can load."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from verl_aer.errors import InputError

MERGED = "merged"
TAIL_LINES = 20


def loadable_model(model: str) -> str:
    """Return ``model`` itself, or the folder of its merged weights if it is a veRL checkpoint.

    A checkpoint is ``global_step_N``, or the folder ``actor`` in it. The first call writes the merged weights next to
    ``actor``, and later calls reuse them.

    Raises:
        InputError: a folder that is neither model nor checkpoint, or shards that cannot be merged.
    """
    folder = Path(model)
    if not folder.is_dir() or (folder / "config.json").is_file():
        return model
    actor = folder / "actor" if (folder / "actor").is_dir() else folder
    if not list(actor.glob("model_world_size_*_rank_*.pt")):
        raise InputError(f"{model}: neither a model (no config.json) nor a veRL checkpoint (no FSDP shards in actor/)")
    merged = actor.parent / MERGED
    if not merged.is_dir():
        _merge(actor, merged)
    return str(merged)


def _merge(actor: Path, merged: Path) -> None:
    with tempfile.TemporaryDirectory(dir=merged.parent, prefix=f".{MERGED}.") as folder:
        target = Path(folder) / MERGED
        command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
        command += ["--local_dir", str(actor), "--target_dir", str(target)]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if run.returncode != 0 or not (target / "config.json").is_file():
            tail = "\n".join(run.stdout.splitlines()[-TAIL_LINES:])
            raise InputError(f"{actor}: the shards cannot be merged:\n{tail}")
        shutil.move(target, merged)
