"""Statistics of sampled answers against enumeration and simulation; samples on disk; comparisons."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_aer.cli import main
from verl_aer.evaluation.pass_at_k import estimate, pass_at_k
from verl_aer.evaluation.report import groups_of, summary, summary_table
from verl_aer.evaluation.run import (
    batches_of,
    load_reward,
    read_run,
    sample_batches,
    settings_of,
    with_progress,
    write_report,
)
from verl_aer.evaluation.sampler import Generation, Sampling
from verl_aer.evaluation.samples import SampleStore, gather, read_problems
from verl_aer.evaluation.statistics import (
    Answers,
    curve_estimates,
    is_real,
    maj_at_k,
    majority,
    majority_estimates,
    paired_difference,
    pass_curve,
)


def answers(correct: str, written: list[str] | None = None, problem: str = "p", source: str = "s", level: str = "all"):
    """``"110"``: right, right, wrong."""
    right = tuple(letter == "1" for letter in correct)
    written = written or ["right" if is_right else f"wrong {place}" for place, is_right in enumerate(right)]
    n = len(right)
    return Answers(problem, source, level, right, tuple(written), tuple(range(1, n + 1)), (0.5,) * n)


# ------------------------------------------------------------------ pass@k, maj@k


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_all_draws_with_a_right_answer(n):
    for c in range(n + 1):
        drawn = [1] * c + [0] * (n - c)
        for k in range(1, n + 1):
            enumerated = np.mean([any(draw) for draw in itertools.combinations(drawn, k)])
            assert pass_curve(n, c)[k - 1] == pytest.approx(enumerated, abs=1e-12)
            assert pass_at_k(n, c, k) == pytest.approx(enumerated, abs=1e-12)


def test_numbers_of_answers_out_of_range_are_refused():
    for n, c in ((0, 0), (3, 4), (3, -1)):
        with pytest.raises(ValueError, match=f"got n = {n}, c = {c}"):
            pass_curve(n, c)


@pytest.mark.parametrize(
    ("correct", "written", "expected"),
    [
        ("110", ["4", "4.0", "5"], 1.0),  # right answers are one, however they are written
        ("100", ["4", "5", "5"], 0.0),
        ("10", ["4", "5"], 0.5),
        ("1000", ["4", "5", "6", "7"], 0.25),
        ("1100", ["4", "4", "5", "5"], 0.5),
        ("1000", ["4", "", "", ""], 1.0),  # what could not be read has no vote
        ("000", ["", "", ""], 0.0),
    ],
)
def test_majority_and_its_ties(correct, written, expected):
    assert majority([letter == "1" for letter in correct], written) == expected


def test_maj_at_k_is_the_mean_over_blocks():
    problem = answers("110" + "100" + "1", ["4", "4", "5", "4", "5", "5", "4"])
    assert maj_at_k(problem, 3) == 0.5
    assert maj_at_k(problem, 1) == pytest.approx(4 / 7)
    assert maj_at_k(problem, 7) == 1.0
    with pytest.raises(ValueError, match="maj@8 needs at least 8 answers, problem p has 7"):
        maj_at_k(problem, 8)
    assert list(majority_estimates([problem])) == [2, 4, 7]


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Problems drawn from a known distribution of difficulties: 95 % of the intervals have its pass@k in them."""
    rng, n, problems, k = np.random.default_rng(0), 8, 60, 4
    rates = rng.beta(0.5, 1.0, size=200_000)
    truth = 1 - ((1 - rates) ** k).mean()
    covered = []
    for _ in range(400):
        correct = rng.binomial(n, rng.beta(0.5, 1.0, size=problems))
        value = estimate(np.array([pass_curve(n, c)[k - 1] for c in correct]))
        covered.append(value.low <= truth <= value.high)
    # 400 intervals: a standard deviation is 1.1 %; a percentile bootstrap over 60 problems is a little narrow.
    assert 0.91 <= np.mean(covered) <= 0.98


def test_one_set_of_resamples_serves_every_k():
    problems = [answers(correct, problem=str(number)) for number, correct in enumerate(["1100", "0000", "1111"] * 5)]
    curve = curve_estimates(problems)
    assert [value.mean for value in curve] == pytest.approx(
        [np.mean([pass_curve(4, c)[k] for c in (2, 0, 4)]) for k in range(4)]
    )
    assert all(value.low <= value.mean <= value.high for value in curve)
    assert all(first.mean <= second.mean for first, second in itertools.pairwise(curve))
    with pytest.raises(ValueError, match=r"same number of answers, found \[1, 4\]"):
        curve_estimates([*problems, answers("1")])


def test_a_paired_difference_sees_what_the_intervals_of_both_hide():
    rng = np.random.default_rng(0)
    hard = rng.random(200) < 0.5
    learnt = hard & (np.arange(200) % 3 == 0)
    before = [answers("0000" if is_hard else "1110", problem=str(number)) for number, is_hard in enumerate(hard)]
    after = [answers("1000", problem=str(number)) if learnt[number] else before[number] for number in range(200)]
    difference = paired_difference(before, after, k=1)
    assert difference.mean == pytest.approx(0.25 * learnt.mean())
    assert is_real(difference)
    assert not is_real(paired_difference(before, before, k=1))
    assert curve_estimates(before)[0].high > curve_estimates(after)[0].low
    with pytest.raises(ValueError, match="not the same problems: 2 are in one alone, such as 0"):
        paired_difference(before, [*after[1:], answers("1", problem="x")], k=1)


def test_groups_are_sources_and_levels_where_there_are_several():
    problems = [answers("10", problem="a", level="1"), answers("11", problem="b", level="2")]
    assert list(groups_of(problems)) == ["level 1", "level 2", "all"]
    assert list(groups_of(problems[:1])) == ["all"]
    found = summary(problems)
    assert found["level 2"]["pass@k"]["1"]["mean"] == 1.0
    assert found["all"]["solved by all"] == 1
    assert found["all"]["solved by none"] == 0
    assert found["all"]["tokens"]["mean"] == 1.5
    assert found["all"]["nats a token"]["mean"] == 0.5
    table = summary_table(problems)
    assert [row[0] for row in table.rows] == ["level 1", "level 2", "all"]


# ------------------------------------------------------------------ samples on disk


def data_file(folder: Path, problems: int = 5) -> Path:
    rows = [
        {
            "data_source": "mine",
            "prompt": [{"role": "user", "content": f"{number} + 1?"}],
            "reward_model": {"ground_truth": str(number + 1), "style": "rule"},
            "extra_info": {"question_id": f"q{number}", "level": number % 2},
        }
        for number in range(problems)
    ]
    file = folder / "data.parquet"
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


def reward(data_source: str, solution_str: str, ground_truth: str, extra_info: dict) -> dict:
    right = float(solution_str == ground_truth)
    return {"score": right, "acc": right, "pred": solution_str}


class Oracle:
    """Answers the even questions."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def generate(self, prompts):
        self.asked += [name for name, _ in prompts]
        numbers = [int(messages[0]["content"].split()[0]) for _, messages in prompts]
        return [[Generation(str(number + 1 + number % 2), 2, 0.1, "stop")] * 2 for number in numbers]


def run(
    folder: Path, file: Path, sampler: Oracle, only: int | None = None, score: str = "mine:reward", **sampling: float
) -> list[Answers]:
    batches = batches_of(read_problems([file]), 2)
    settings = settings_of(folder.name, [file], vars(Sampling(n=2, **sampling)), score, 2, len(batches))
    store = SampleStore(folder, settings)
    mine = store.missing(len(batches))[:only]
    with_progress(sample_batches(batches, mine, store, sampler, reward), len(mine))
    return gather(store.samples())


def test_an_evaluation_goes_on_where_it_was(tmp_path, capsys):
    file, first, second = data_file(tmp_path), Oracle(), Oracle()
    run(tmp_path / "out", file, first, only=2)
    assert first.asked == ["q0", "q1", "q2", "q3"]
    with pytest.raises(ValueError, match="2 of 3 batches are there; the same `verl-aer evaluate` resumes it"):
        read_run(tmp_path / "out")
    found = run(tmp_path / "out", file, second)
    assert second.asked == ["q4"]
    assert found == run(tmp_path / "whole", file, Oracle()) == read_run(tmp_path / "out")
    assert [sum(problem.correct) for problem in found] == [2, 0, 2, 0, 2]
    assert [problem.level for problem in found] == ["0", "1", "0", "1", "0"]
    text = write_report(tmp_path / "out", found, "mine")
    assert "0.600" in text
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["all"]["pass@k"]["2"]["mean"] == 0.6
    assert (tmp_path / "out" / "pass_at_k.png").stat().st_size > 1000
    assert "3/3 batches" in capsys.readouterr().err


def test_samples_of_other_settings_are_not_gone_on_with(tmp_path):
    SampleStore(tmp_path / "out", {"model": "a", "n": 2})
    SampleStore(tmp_path / "out", {"model": "a", "n": 2})
    with pytest.raises(ValueError, match=r"another evaluation \(n: 2 there, 3 now\); choose another --out"):
        SampleStore(tmp_path / "out", {"model": "a", "n": 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": []}, "row 2: prompt: not a list of messages; `verl-aer data inspect"),
        ({"extra_info": {"question_id": "q0", "level": 0}}, "row 2: problem q0 is there twice"),
    ],
)
def test_data_that_cannot_be_evaluated_is_refused_before_a_model_is_loaded(change, message, tmp_path, capsys):
    file = data_file(tmp_path)
    rows = pq.read_table(file).to_pylist()
    rows[1] |= change
    pq.write_table(pa.Table.from_pylist(rows), file)
    arguments = ["evaluate", str(tmp_path / "no-model"), "--data", str(file), "--reward", f"{__file__}:reward"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", "0"], "--n has to be at least 1"),
        (["--temperature", "0"], "--n above 1 needs a --temperature above 0"),
        (["--top-p", "0", "--batch", "0"], "--top-p has to be above 0 and at most 1; --batch has to be at least 1"),
        (["--reward", "nothing"], "give PATH.py:FUNCTION or package.module:FUNCTION"),
        (["--reward", "missing.py:f"], "missing.py:f: no such file"),
        (["--reward", "verl_aer.missing:f"], "No module named 'verl_aer.missing'"),
        (["--reward", "json:missing"], "json has no function missing"),
    ],
)
def test_wrong_settings_are_one_line(arguments, message, tmp_path, capsys):
    file = data_file(tmp_path)
    assert main(["evaluate", "model", "--data", str(file), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_model_is_named(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    arguments = ["--data", str(data_file(tmp_path)), "--reward", f"{__file__}:reward", "--out", str(tmp_path / "out")]
    assert main(["evaluate", str(tmp_path / "empty"), *arguments]) == 2
    assert "neither a model (no config.json) nor a veRL checkpoint" in capsys.readouterr().err


def test_a_reward_without_correctness_is_named(tmp_path):
    batches = batches_of(read_problems([data_file(tmp_path)]), 2)
    store = SampleStore(tmp_path / "out", {"batches": 3})
    with pytest.raises(ValueError, match="has to return a dict with 'score' and 'acc'"):
        list(sample_batches(batches, [0], store, Oracle(), lambda **_: 1.0))
    assert not (tmp_path / "out" / "samples").exists()


def test_rewards_are_found_by_file_and_by_module():
    assert load_reward("examples/countdown/reward.py:compute_score")("m", "1+2", "1,2=3")["acc"] == 1.0
    assert load_reward("examples.countdown.reward:compute_score")("m", "1+2", "1,2=3")["acc"] == 1.0


def test_seeds_and_bounds_of_the_sampling():
    assert Sampling().problems() == []
    assert Sampling(n=1, temperature=0.0).problems() == []


def test_runs_are_compared_side_by_side(tmp_path, capsys):
    file = data_file(tmp_path, problems=40)
    run(tmp_path / "none", file, Oracle())

    class Better(Oracle):
        def generate(self, prompts):
            return [
                [Generation(str(int(messages[0]["content"].split()[0]) + 1), 2, 0.1, "stop")] * 2
                for _, messages in prompts
            ]

    run(tmp_path / "aer", file, Better())
    out = tmp_path / "compared.png"
    runs = [f"{name}={tmp_path / name}" for name in ("none", "aer")]
    assert main(["compare", *runs, "--k", "1", "2", "--markdown", "--out", str(out)]) == 0
    table = capsys.readouterr().out
    assert "| metric | none | aer | aer - none | real |" in table
    assert "+0.500" in table
    assert table.count("| yes |") == 2
    assert out.stat().st_size > 1000
    assert main(["compare", runs[0], runs[0]]) == 2
    assert "give two evaluations or more" in capsys.readouterr().err
    assert main(["compare", *runs, "--k", "3"]) == 2
    assert "none: pass@3 needs 3 answers a problem, there are 2" in capsys.readouterr().err
    assert main(["compare", str(tmp_path), runs[0]]) == 2
    assert "no samples in it" in capsys.readouterr().err


def test_evaluations_of_different_settings_are_not_compared(tmp_path, capsys):
    file = data_file(tmp_path)
    other_file = data_file(tmp_path / "other")
    run(tmp_path / "base", file, Oracle())
    # Chance, and the number of answers, may differ; the name of a data file says nothing.
    run(tmp_path / "again", file.rename(tmp_path / "renamed.parquet"), Oracle(), seed=1)
    assert main(["compare", str(tmp_path / "base"), str(tmp_path / "again")]) == 0
    rows = pq.read_table(other_file).to_pylist()
    rows[0]["prompt"][0]["content"] = "0 + 1? Think first."
    pq.write_table(pa.Table.from_pylist(rows), other_file)
    run(tmp_path / "hotter", other_file, Oracle(), temperature=1.2, max_tokens=64, score="yours:reward")
    run(tmp_path / "narrow", tmp_path / "renamed.parquet", Oracle(), top_p=0.9)
    capsys.readouterr()
    assert main(["compare", *(str(tmp_path / name) for name in ("base", "again", "hotter", "narrow"))]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "evaluations of different settings cannot be compared (SHA-256 of --data: " in said.err
    for told in (
        "--reward: 'mine:reward' in base, 'yours:reward' in hotter",
        "--temperature: 1.0 in base, 1.2 in hotter",
        "--max-tokens: 2048 in base, 64 in hotter",
        "--top-p: 1.0 in base, 0.9 in narrow",
    ):
        assert told in said.err
    assert "again" not in said.err.replace("in base", "")
