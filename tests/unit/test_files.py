"""Files are written atomically on any file system, without a change to the process."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from verl_aer._files import replaced_atomically, write_text_atomically


def refuse(*args: object, **kwargs: object) -> None:
    raise PermissionError(1, "Operation not permitted")


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def test_a_new_file_has_the_rights_of_any_new_file(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "state.json"
    write_text_atomically(path, "{}")
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_the_umask_which_all_threads_share_is_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "umask", refuse)
    write_text_atomically(tmp_path / "state.json", "{}")
    assert (tmp_path / "state.json").read_text() == "{}"


def test_a_file_system_that_knows_no_rights_holds_the_file_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("chmod", "fchmod"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(Path, "chmod", refuse)
    write_text_atomically(tmp_path / "state.json", "{}")
    assert (tmp_path / "state.json").read_text() == "{}"


def test_the_content_is_synced_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    sync, rename = os.fsync, os.replace

    def fsync(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def replace(source: Path, target: Path) -> None:
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_text_atomically(tmp_path / "state.json", "{}")
    assert done == ["file", "rename", "folder"]


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            refuse()
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text_atomically(tmp_path / "state.json", "{}")
    assert (tmp_path / "state.json").read_text() == "{}"


def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")

    def half() -> None:
        with replaced_atomically(path) as temporary:
            temporary.write_text("half")
            raise KeyError("x")

    with pytest.raises(KeyError):
        half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
