"""Every exception of the package has the same base class, and the commands print only such exceptions as one line."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import verl_aer
from verl_aer import errors
from verl_aer._files import read_json
from verl_aer.cli.arguments import BAD_INPUT
from verl_aer.cli.main import main
from verl_aer.errors import InputError


def defined() -> dict[str, list[str]]:
    """Class -> the names of its bases, for every class of the package. Read, not imported: it needs no GPU library."""
    found = {}
    for path in Path(verl_aer.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found[node.name] = [ast.unparse(base).rsplit(".", 1)[-1] for base in node.bases]
    return found


def ancestors(name: str, classes: dict[str, list[str]]) -> set[str]:
    bases = classes.get(name, [])
    return set(bases).union(*(ancestors(base, classes) for base in bases))


def is_exception(name: str) -> bool:
    known = getattr(builtins, name, None)
    return issubclass(known, BaseException) if inspect.isclass(known) else name.endswith(("Error", "Exception"))


def test_every_exception_of_the_package_has_the_base_class_and_is_in_its_tree() -> None:
    classes = defined()
    found = {name for name in classes if any(map(is_exception, ancestors(name, classes)))}
    assert {"StateError", "AdaptationError", "WorkerDiedError", "MissingExtraError"} <= found
    assert found - {name for name in found if "VerlAerError" in ancestors(name, classes)} == {"VerlAerError"}
    drawn = set(re.findall(r"^ +(?:│ +)?[├└]── (\w+)", errors.__doc__, flags=re.MULTILINE))
    assert drawn == found - {"VerlAerError"}


def test_a_bug_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1, "data": {"aer/entropy": 0.5}}\n')
    monkeypatch.setattr("verl_aer.reports.summary.summary_table", lambda arms: np.zeros(2).reshape(3))
    with pytest.raises(ValueError, match="cannot reshape"):
        main(["summary", str(log)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "inspect", "nowhere.parquet"], "verl-aer data: nowhere.parquet: no such file\n"),
        (["data", "inspect", "FILE"], "verl-aer data: FILE: not a parquet file ("),
        (["simulate", "--replay", "LOG", "--config", "FILE"], "verl-aer simulate: FILE: not a JSON file ("),
        (["simulate", "--set", "target.tau=2"], "verl-aer simulate: the entropy control found 1 problem"),
        (["simulate", "--set", "target.tau=${"], "verl-aer simulate: --set: "),
        (["simulate", "--set", "target.tau=[1"], "verl-aer simulate: --set: "),
    ],
)
def test_bad_input_is_one_message(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, log = tmp_path / "damaged", tmp_path / "metrics.jsonl"
    file.write_text("{")
    log.write_text('{"step": 1, "data": {"aer/alpha": 0.5}}\n')
    assert main([word.replace("FILE", str(file)).replace("LOG", str(log)) for word in arguments]) == BAD_INPUT
    said = capsys.readouterr().err
    assert said.startswith(message.replace("FILE", str(file)))
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["diagnose", "nowhere.log"], "'nowhere.log' does not exist"),
        (["runtime-env", "--out", "damaged/x.yaml"], "damaged is not a folder that you can write to."),
    ],
)
def test_files_that_cannot_be_read_or_written_are_refused_at_once(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "damaged").touch()
    assert main(arguments) == BAD_INPUT
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_json_file_is_read_or_named(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"a": 1}')
    assert read_json(file) == {"a": 1}
    file.write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"settings\.json: not a JSON file"):
        read_json(file)
