"""Every script of `data_prep/` on rows in the hub's format: rows kept, rows left out with the reason, files written."""

from __future__ import annotations

import csv
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.countdown.model import build_tokenizer
from tests.data_prep.hub_samples import SAMPLES, Sample, aime, dapo, math500
from verl_aer.cli.main import main
from verl_aer.data import prepare as preparation
from verl_aer.data.dataset import DataSet
from verl_aer.data.inspect import inspect, row_error
from verl_aer.data.prepare import CONTRADICTS, HELD_OUT, OVERLAPS, REPEATED, PreparationSettings, prepare
from verl_aer.data.text import EvalQuestionIndex

SCRIPTS = sorted(path.stem for path in Path("data_prep").glob("*.py") if path.stem != "__init__")
ROOT = Path(__file__).parents[2]


def data_set(name: str) -> DataSet:
    return importlib.import_module(f"data_prep.{name}").DATA_SET


def source_of(sample: Sample | list, folder: Path, kind: str = "parquet") -> Path:
    rows = sample.rows if isinstance(sample, Sample) else sample
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"source.{kind}"
    if kind == "parquet":
        # Values of one column may differ in type here, as they do in the hub's JSON.
        try:
            pq.write_table(pa.Table.from_pylist(rows), file)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            return source_of(sample, folder, "jsonl")
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with file.open("w", newline="", encoding="utf-8") as lines:
            writer = csv.DictWriter(lines, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return file


def rows_of(file: Path) -> list[dict]:
    return pq.read_table(file).to_pylist()


def left_out(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.with_suffix(".left-out.jsonl").read_text().splitlines()]


def test_there_is_a_script_for_each_data_set_and_a_sample_for_each_script():
    assert len(SCRIPTS) == 11
    assert sorted(SAMPLES) == SCRIPTS
    assert sorted(name for name in SCRIPTS if data_set(name).role == "evaluation") == [
        "aime24", "aime25", "amc23", "math500", "minerva", "olympiadbench",
    ]  # fmt: skip
    assert all(data_set(name).name == name for name in SCRIPTS)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_rows_become_rows_of_verls_schema(name, kind, tmp_path, capsys):
    sample, out = SAMPLES[name], tmp_path / "out.parquet"
    arguments = ["--input", str(source_of(sample, tmp_path, kind)), "--out", str(out)]
    assert preparation.run(data_set(name), arguments) == 0
    rows = rows_of(out)
    assert [row["reward_model"]["ground_truth"] for row in rows] == sample.answers
    assert all(row_error(row) is None for row in rows)
    assert len({row["extra_info"]["question_id"] for row in rows}) == len(rows)
    assert {row["data_source"] for row in rows} == {name}
    for row in rows:
        assert row["prompt"][0]["content"] == row["extra_info"]["question"] + "\n\n" + PreparationSettings().instruction
    report = json.loads(out.with_suffix(".report.json").read_text())
    assert report["rows_in"] == len(sample.rows)
    assert report["rows_out"] == len(rows)
    assert sum(report["bad"].values()) == sample.bad
    assert sum(report["left_out"].values()) == sample.left_out
    assert report["rows_in"] == report["rows_out"] + sample.bad + sample.left_out
    assert sum(report["answers"].values()) == len(rows)
    assert report["content_sha256"] in capsys.readouterr().out
    assert inspect(out).bad == []


def test_dapos_instruction_is_taken_off_whole(tmp_path):
    """Removing its letters from the ends, as some do, eats into problems that begin with one of them."""
    question = "Some thieves eat 3 apples: how many remain of 12 answers?"
    prepare(data_set("dapo_math_17k"), tmp_path / "out.parquet", [source_of([dapo(question, "9")], tmp_path)])
    assert rows_of(tmp_path / "out.parquet")[0]["extra_info"]["question"] == question


def test_repeated_and_contradicting_rows_are_told_apart(tmp_path):
    out = tmp_path / "out.parquet"
    report = prepare(data_set("dapo_math_17k"), out, [source_of(SAMPLES["dapo_math_17k"].rows[:8], tmp_path)])
    assert report.left_out == {REPEATED: 5, CONTRADICTS: 1}
    assert [(row["row"], row["reason"]) for row in left_out(out)] == [(7, CONTRADICTS)]


def test_the_same_rows_in_another_container_are_the_same_bytes(tmp_path):
    files = [source_of(SAMPLES["dapo_math_17k"].rows[:8], tmp_path / kind, kind) for kind in ("parquet", "jsonl")]
    made = []
    for number, file in enumerate([files[0], *files]):
        out = tmp_path / f"{number}.parquet"
        report = prepare(data_set("dapo_math_17k"), out, [file])
        made.append((out.read_bytes(), report.content_sha256))
    assert made[0] == made[1] == made[2]


def test_a_csv_has_its_numbers_as_texts(tmp_path):
    sample = SAMPLES["amc23"]
    prepare(data_set("amc23"), tmp_path / "out.parquet", [source_of(sample, tmp_path, "csv")])
    assert [row["reward_model"]["ground_truth"] for row in rows_of(tmp_path / "out.parquet")] == sample.answers


def test_a_question_id_does_not_depend_on_the_order_of_the_rows(tmp_path):
    ids = []
    for rows in (SAMPLES["math500"].rows, SAMPLES["math500"].rows[::-1]):
        prepare(data_set("math500"), tmp_path / "out.parquet", [source_of(rows, tmp_path)])
        ids.append(
            {
                row["extra_info"]["question"]: row["extra_info"]["question_id"]
                for row in rows_of(tmp_path / "out.parquet")
            }
        )
    assert ids[0] == ids[1]


# ------------------------------------------------------------------ evaluation sets


LONG = "A train leaves the station at noon and travels north at sixty miles an hour until it meets another train"


@pytest.fixture
def evaluation(tmp_path) -> Path:
    rows = [math500("What is $\\dfrac{1}{2}$ of $7$?", "3.5"), math500(f"{LONG}; when is that?", "3")]
    out = tmp_path / "evaluation" / "math500.parquet"
    prepare(data_set("math500"), out, [source_of(rows, tmp_path / "evaluation")])
    return out


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("what is \\frac{1}{2} of 7 ?", HELD_OUT),
        (f"{LONG}. How far is it by then?", OVERLAPS),
        ("A train leaves the station at noon. How many letters has that?", None),
        ("What is \\frac{1}{3} of 7?", None),
    ],
)
def test_questions_of_the_evaluation_sets_are_left_out(question, reason, evaluation, tmp_path):
    rows, out = [dapo(question, "1"), dapo("Something else entirely.", "2")], tmp_path / "out.parquet"
    report = prepare(data_set("dapo_math_17k"), out, [source_of(rows, tmp_path)], against=[evaluation])
    assert report.left_out == ({reason: 1} if reason else {})
    assert [row["reason"] for row in left_out(out)] == ([reason] if reason else [])
    assert report.as_dict()["settings"]["against"] == ["math500.parquet"]


def test_overlap_is_a_share_of_the_questions_own_ngrams():
    eval_questions = EvalQuestionIndex(["one two three four five"], n=2)
    assert eval_questions.overlap("one two three") == 1.0
    assert eval_questions.overlap("zero one two three") == pytest.approx(2 / 3)
    assert eval_questions.overlap("one") == 0.0
    assert EvalQuestionIndex([], n=2).overlap("one two") == 0.0


def test_the_settings_of_the_overlap_are_used(evaluation, tmp_path):
    rows = [dapo(f"{LONG}. How far is it by then?", "1"), dapo("Something else.", "2")]
    source = source_of(rows, tmp_path)
    for settings, found in (
        (PreparationSettings(overlap=1.0), 0),
        (PreparationSettings(ngram=30), 0),
        (PreparationSettings(overlap=0.1), 1),
    ):
        report = prepare(
            data_set("dapo_math_17k"), tmp_path / "out.parquet", [source], against=[evaluation], settings=settings
        )
        assert report.left_out[OVERLAPS] == found


# ------------------------------------------------------------------ bad input


def test_bad_rows_are_counted_named_and_kept_aside(tmp_path):
    rows = [aime("Find it.", "12"), aime("", "3"), {"id": 1}, aime("Find them.", "1000"), aime("No.", None)]
    out = tmp_path / "out.parquet"
    report = prepare(data_set("aime24"), out, [source_of(rows, tmp_path, "jsonl")])
    assert report.rows_out == 1
    assert [(row["row"], row["reason"]) for row in left_out(out)] == [
        (2, "problem: not a text: ''"),
        (3, "answer: missing"),
        (4, "answer: not an integer from 0 to 999"),
        (5, "answer: missing"),
    ]


def test_strict_makes_a_bad_row_an_error_and_writes_nothing(tmp_path, capsys):
    source, out = source_of(SAMPLES["gsm8k"], tmp_path), tmp_path / "out" / "gsm8k.parquet"
    assert preparation.run(data_set("gsm8k"), ["--input", str(source), "--out", str(out), "--strict"]) == 2
    error = capsys.readouterr().err
    assert "1 bad rows, and --strict: nothing was written" in error
    assert f"{source} row 2: answer: no #### with a number after it" in error
    assert list(out.parent.iterdir()) == []


def test_an_answer_that_no_rule_can_read_may_be_asked_for(tmp_path, capsys):
    rows = [math500("Which?", "\\frac{1}{2"), math500("And which?", "\\frac{1}{2}"), math500("Else?", "7")]
    source, out = source_of(rows, tmp_path), tmp_path / "out.parquet"
    assert preparation.run(data_set("math500"), ["--input", str(source), "--out", str(out), "--check-answers"]) == 0
    assert [row["reward_model"]["ground_truth"] for row in rows_of(out)] == ["\\frac{1}{2}", "7"]
    (bad,) = left_out(out)
    assert (bad["row"], bad["reason"].split(":")[:2]) == (1, ["answer", " the math reward cannot read it"])
    assert preparation.run(data_set("math500"), ["--input", str(source), "--out", str(out)]) == 0
    assert len(rows_of(out)) == 3


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("not json\n[1, 2]\n", "none of 2 rows is left"),
        ("", "none of 0 rows is left"),
        ("[{", "begins like a JSON list but is not one"),
    ],
)
def test_a_source_without_a_good_row_is_an_error(lines, message, tmp_path):
    source = tmp_path / "source.jsonl"
    source.write_text(lines)
    with pytest.raises(ValueError, match=message):
        prepare(data_set("amc23"), tmp_path / "out.parquet", [source])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "missing.parquet"], "missing.parquet: no such file"),
        (["--input", "README.md"], "README.md: unknown file type"),
        (["--input", "x.parquet", "--overlap", "0"], "--overlap must be above 0 and at most 1"),
        (["--input", "x.parquet", "--against", "missing.parquet"], "missing.parquet: no such file; prepare the eval"),
        ([], "cannot be read from the hub"),
    ],
)
def test_what_cannot_be_read_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert preparation.run(data_set("gsm8k"), [*arguments, "--out", str(tmp_path / "out.parquet")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_killed_leaves_nothing_under_the_final_name(tmp_path):
    source = tmp_path / "source.jsonl"
    with source.open("w") as lines:
        for number in range(200_000):
            lines.write(json.dumps(dapo(f"What is {number} plus one?", str(number + 1))) + "\n")
    out = tmp_path / "out" / "dapo.parquet"
    command = [sys.executable, "-m", "data_prep.dapo_math_17k", "--input", str(source), "--out", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not any(part.stat().st_size > 1e5 for part in out.parent.glob(".*.parquet")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert [path for path in out.parent.iterdir() if not path.name.startswith(".")] == []


# ------------------------------------------------------------------ verl-aer data inspect


def good_row() -> dict:
    return {
        "data_source": "mine",
        "prompt": [{"role": "user", "content": "1 + 1?"}],
        "reward_model": {"ground_truth": "2", "style": "rule"},
        "extra_info": {"question_id": "a"},
    }


def test_inspect_shows_a_file_and_finds_its_bad_rows(tmp_path, capsys):
    rows = [
        good_row(),
        good_row() | {"reward_model": {"ground_truth": None, "style": "rule"}},
        good_row() | {"prompt": []},
    ]
    rows.append(good_row() | {"prompt": [{"role": "assistant", "content": "Hi"}]})
    file = tmp_path / "mine.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    assert main(["data", "inspect", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "2    reward_model.ground_truth: missing, or not a text" in shown
    assert "3    prompt: not a list of messages" in shown
    assert "4    prompt: the last message is from 'assistant', not from the user" in shown
    assert "1 + 1?" in shown
    kept = [json.loads(line) for line in file.with_suffix(".bad.jsonl").read_text().splitlines()]
    assert [row["row"] for row in kept] == [2, 3, 4]
    assert kept[0]["content"]["prompt"] == good_row()["prompt"]
    assert main(["data", "inspect", str(file), "--strict"]) == 1


def test_inspect_says_what_a_file_lacks(tmp_path, capsys):
    file = tmp_path / "mine.parquet"
    pq.write_table(pa.table({"prompt": ["1 + 1?"]}), file)
    assert main(["data", "inspect", str(file)]) == 2
    assert "lacks data_source, reward_model; prepare it with a script of data_prep" in capsys.readouterr().err
    file.write_text("no parquet")
    assert main(["data", "inspect", str(file)]) == 2
    assert "not a parquet file" in capsys.readouterr().err
    assert main(["data", "inspect", str(tmp_path / "none.parquet")]) == 2


def test_inspect_counts_repeated_prompts_and_missing_ids(tmp_path):
    file = tmp_path / "mine.parquet"
    pq.write_table(pa.Table.from_pylist([good_row(), good_row() | {"extra_info": {"question_id": None}}]), file)
    found = inspect(file)
    assert (found.rows, found.repeated, found.without_id, found.bad) == (2, 1, 1, [])


def test_prompts_are_counted_in_a_tokenizers_tokens(tmp_path):
    build_tokenizer().save_pretrained(tmp_path / "tokenizer")
    source, out = source_of([math500("1+1=?", "2"), math500("12+12=?", "24")], tmp_path), tmp_path / "out.parquet"
    arguments = ["--input", str(source), "--out", str(out), "--tokenizer", str(tmp_path / "tokenizer")]
    assert preparation.run(data_set("math500"), [*arguments, "--instruction", ""]) == 0
    lengths = json.loads(out.with_suffix(".report.json").read_text())["prompt_tokens"]
    # One token a character.
    assert (lengths["least"], lengths["most"]) == (5, 7)
