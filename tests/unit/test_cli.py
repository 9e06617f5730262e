"""The command line: exit codes, output, files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from verl_aer import get_method, method_names, parse_entropy_config, to_mapping
from verl_aer.cli.arguments import BAD_INPUT, PROBLEM
from verl_aer.cli.main import main
from verl_aer.cli.simulate import sparkline
from verl_aer.control.simulation import Plant, simulate
from verl_aer.methods.base import method_builder

ROOT = Path(__file__).resolve().parents[2]


def write_log(path: Path, tamper: dict[int, float] | None = None) -> Path:
    """A metrics log and settings file as a run leaves them; `tamper` adds to the alpha of a step."""
    config = parse_entropy_config({"method": "aer"})
    lines = []
    for step, data in simulate(config, Plant(noise=0.02), steps=60):
        data["aer/alpha"] += (tamper or {}).get(step, 0.0)
        lines.append(json.dumps({"step": step, "data": data}) + "\n")
    path.write_text("".join(lines))
    path.with_name(path.name + ".entropy.json").write_text(json.dumps(to_mapping(config)))
    return path


def write_dump(path: Path, correct: list[bool]) -> Path:
    rows = [
        {"input": f"p{problem}", "uid": f"u{problem}_{session}_0", "acc": right, "level": 2}
        for problem in range(2)
        for session, right in enumerate(correct)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_methods_are_listed_with_their_standing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    _title, header, _rule, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["method", "parts", "provenance"]
    assert [line.split()[0] for line in lines] == method_names()
    for line in lines:
        method = get_method(line.split()[0])
        for part in (method.allocation, method.measure, method.controller):
            assert f" {part.kind} " in line
        assert method.provenance in line
        assert method.summary in line


@pytest.mark.parametrize("name", method_names())
def test_a_method_is_explained_with_every_setting(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", name]) == 0
    output = capsys.readouterr().out
    config = to_mapping(parse_entropy_config({"method": name}))
    for part in ("allocation", "measure", "target", "controller"):
        assert f"{part}: {config[part].pop('kind')}" in output
        for key, value in config[part].items():
            assert f"entropy.{part}.{key}={value if isinstance(value, str) else json.dumps(value)}\n" in output
    method = get_method(name)
    assert method.source in output
    assert f"\nwatch: {method.watch}\n" in output
    assert method_builder(name).__doc__.splitlines()[0] in output
    for key, value in method.verl.items():
        assert f"{key}={value}\n" in output


def test_simulate_compares_several_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "plant.png"
    assert main(["simulate", "none", "aer", "--noise", "0", "--steps", "300", "--out", str(figure)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if "synthetic plant" in line] == ["none", "aer"]
    ends = [float(line.split()[-1]) for line in lines if "entropy, nats" in line]
    # Left alone the plant collapses, under aer it is held at 0.4 of its start, 0.8.
    assert ends[0] < 0.001
    assert ends[1] == pytest.approx(0.32, abs=0.01)
    assert figure.stat().st_size > 10_000


def test_bad_input_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "sirene"]) == BAD_INPUT
    assert "did you mean 'siren'?" in capsys.readouterr().err
    assert main(["simulate", "--set", "target.tau=7"]) == BAD_INPUT
    assert "entropy.target.tau" in capsys.readouterr().err
    assert main(["plot", "nowhere.jsonl"]) == BAD_INPUT
    assert capsys.readouterr().err.startswith("verl-aer plot: nowhere.jsonl: no such file")
    assert main(["methds"]) == BAD_INPUT
    assert "No such command 'methds'" in capsys.readouterr().err


def test_simulation_reaches_its_target_and_writes_its_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "plant.png"
    assert main(["simulate", "--steps", "400", "--noise", "0", "--out", str(figure)]) == 0
    entropy, alpha, target, written = capsys.readouterr().out.splitlines()[1:]
    # H* = 0.4 * 0.8, and holding it takes alpha = decay * H* / gain = 0.05 * 0.32 / 0.15.
    assert entropy.endswith("0.800 → 0.320")
    assert alpha.endswith("0.000 → 0.107")
    assert target.endswith("0.320")
    assert written == f"figure: {figure}"
    assert figure.stat().st_size > 10_000


def test_simulate_shows_hard_and_easy_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--generalization", "0.5", "--multiplicative", "--noise", "0", "--steps", "50"]) == 0
    shown = capsys.readouterr().out
    assert "of hard prompts" in shown
    assert "of easy prompts" in shown
    assert main(["simulate", "--generalization", "1.5"]) == BAD_INPUT


def test_replay_agrees_exactly_or_names_the_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_log(tmp_path / "metrics.jsonl")
    assert main(["simulate", "--replay", str(log)]) == 0
    assert "61 alphas recomputed, largest difference 0\n" in capsys.readouterr().out
    write_log(log, tamper={40: 1e-9})
    assert main(["simulate", "--replay", str(log)]) == PROBLEM
    assert "first at step 40" in capsys.readouterr().out


def test_replay_finds_a_setting_that_differs(tmp_path: Path) -> None:
    log = write_log(tmp_path / "metrics.jsonl")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"method": "aer", "controller": {"kind": "pi", "ki": 0.021}}))
    assert main(["simulate", "--replay", str(log), "--config", str(other)]) == PROBLEM


def test_replay_without_settings_says_where_they_are_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_log(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl.entropy.json").unlink()
    assert main(["simulate", "--replay", str(log)]) == BAD_INPUT
    assert "metrics.jsonl.entropy.json: no such file" in capsys.readouterr().err


def test_plot_of_two_arms_writes_beside_the_first_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = write_log(tmp_path / "a.jsonl"), write_log(tmp_path / "b.jsonl")
    assert main(["plot", f"aer={first}", f"aer={second}", f"fixed={first}"]) == 0
    assert capsys.readouterr().out == f"figure: {tmp_path / 'a.png'}\n"
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_dumps_before_and_after_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = write_dump(tmp_path / "0.jsonl", [True, False, False, False])
    after = write_dump(tmp_path / "9.jsonl", [True, True, False, False])
    assert main(["compare", f"before={before}", f"after={after}", "--k", "1", "--k", "4"]) == 0
    output = capsys.readouterr().out
    # pass@1: 1/4 -> 2/4; pass@4: 1 -> 1.
    assert "pass@1  before  0.250 [0.250, 0.250]\n" in output
    assert "pass@1  after   0.500 [0.500, 0.500]  +0.250" in output
    assert "pass@4  after   1.000 [1.000, 1.000]  +0.000" in output
    assert main(["compare", f"before={before}", "--k", "8"]) == BAD_INPUT
    assert "val_kwargs" in capsys.readouterr().err
    assert main(["compare", f"before={before}", "--k", "1", "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("|  | problems | pass@1 | maj@4 |\n| --- |")


def test_diagnose_names_the_exception_that_began_it(tmp_path, capsys):
    log = tmp_path / "train.log"
    lines = ["(Worker pid=1) ValueError: no such model", "", "ray.exceptions.RayTaskError(ValueError): it died"]
    log.write_text("\n".join(lines))
    assert main(["diagnose", str(log), "--exit-code", "-9"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "the run failed (killed by SIGKILL, possibly because memory ran out):"
    assert said[1:] == ["  ValueError: no such model", f"whole log: {log}"]
    assert main(["diagnose", str(log)]) == 0
    assert capsys.readouterr().out.splitlines() == ["the run failed:", *said[1:]]
    log.write_text("(TaskRunnerV1 pid=2) 'Final validation metrics: None'\n")
    assert main(["diagnose", str(log)]) == 0
    assert capsys.readouterr().out.startswith("the run succeeded")
    assert main(["diagnose", "nowhere.log"]) == BAD_INPUT


def test_metrics_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics"]) == 0
    assert "| `aer/alpha` | loss/nat |" in capsys.readouterr().out


def test_sparkline_shows_a_constant_as_flat_and_averages_long_series() -> None:
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([0.0] * 300 + [1.0] * 300) == "▁" * 30 + "█" * 30


def test_the_command_imports_nothing_heavy_before_it_knows_what_to_do() -> None:
    code = (
        "import sys; from verl_aer.cli.main import main\n"
        "assert main(['plot', '--help']) == 0\n"
        "assert not {'matplotlib', 'numpy', 'torch', 'verl', 'ray', 'hydra'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "verl-aer plot runs/aer/metrics.jsonl" in done.stdout


def test_help_lists_each_command_and_each_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = re.findall(r"^│ ([a-z-]+) ", capsys.readouterr().out, flags=re.MULTILINE)
    files = {path.stem.replace("_", "-") for path in (ROOT / "verl_aer" / "cli").glob("[a-z]*.py")}
    commands = set(listed) - {"--install-completion", "--show-completion", "--help"}
    assert commands == files - {"main", "arguments"}
    for command in commands:
        assert main([command, "--help"]) == 0
        assert f"Usage: verl-aer {command} " in capsys.readouterr().out


def test_the_shell_completes_commands() -> None:
    words = {"_VERL_AER_COMPLETE": "complete_bash", "COMP_WORDS": "verl-aer di", "COMP_CWORD": "1"}
    command = [sys.executable, "-m", "verl_aer.cli"]
    done = subprocess.run(command, env=os.environ | words, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["diagnose"]


def test_a_reader_that_has_read_enough_is_no_error():
    command = f"set -o pipefail; {sys.executable} -m verl_aer.cli metrics | head -1"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert len(run.stdout.splitlines()) == 1
