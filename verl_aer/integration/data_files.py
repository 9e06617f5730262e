"""The data files of a run, as veRL's config names them: one, or a list."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, ListConfig


def data_files(config: DictConfig, key: str) -> list[str]:
    """The files of ``data.train_files`` or ``data.val_files``; ``~`` is the user's folder, remote names stay."""
    files = config.data[key]
    names = [str(file) for file in (files if isinstance(files, ListConfig) else [files])]
    return [name if "://" in name else str(Path(name).expanduser()) for name in names]
