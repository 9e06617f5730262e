"""Callbacks after an import."""

from __future__ import annotations

import importlib
import sys

import pytest

from verl_aer import _import_hooks as waiting
from verl_aer._import_hooks import after_import


@pytest.fixture
def module(monkeypatch, tmp_path):
    """Write a module that can be imported, and forget it after the test."""
    names = []

    def write(name: str, text: str) -> str:
        tmp_path.joinpath(f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        names.append(name)
        return name

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in names:
        sys.modules.pop(name, None)


def test_the_action_comes_once_and_finds_the_module_complete(module):
    name = module("awaited_one", "value = 1\n")
    seen = []
    after_import(name, lambda: seen.append(sys.modules[name].value))
    assert seen == []
    importlib.import_module(name)
    importlib.import_module(name)
    assert seen == [1]


def test_several_actions_keep_their_order(module):
    name = module("awaited_twice", "")
    seen = []
    after_import(name, lambda: seen.append("first"))
    after_import(name, lambda: seen.append("second"))
    importlib.import_module(name)
    assert seen == ["first", "second"]


def test_a_module_that_is_there_already_is_acted_on_now():
    seen = []
    after_import("importlib", lambda: seen.append(1))
    assert seen == [1]


def test_an_error_of_the_action_is_no_error_of_the_import(module, monkeypatch, caplog):
    monkeypatch.setattr(waiting, "failures", [])
    name = module("awaited_in_vain", "value = 1\n")
    seen = []

    def fail() -> None:
        raise LookupError("does not fit")

    after_import(name, fail)
    after_import(name, lambda: seen.append(1))
    assert importlib.import_module(name).value == 1
    assert seen == [1]
    (failure,) = waiting.failures
    assert failure.endswith("fail failed: LookupError: does not fit")
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert failure in record.message
    assert record.exc_info


def test_the_action_waits_for_an_import_that_succeeds(module, tmp_path):
    name = module("awaited_longer", "raise OSError('not yet')\n")
    seen = []
    after_import(name, lambda: seen.append(1))
    with pytest.raises(OSError, match="not yet"):
        importlib.import_module(name)
    assert seen == []
    # Another length, so that the cached bytecode is not taken for this source.
    tmp_path.joinpath(f"{name}.py").write_text("value = 2\n")
    importlib.import_module(name)
    assert seen == [1]
