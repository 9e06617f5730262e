"""Statistics of sampled answers compared with enumeration and simulation; samples on disk; comparisons."""

from __future__ import annotations

import itertools
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_aer.cli.main import main
from verl_aer.errors import InputError
from verl_aer.evaluation import workers
from verl_aer.evaluation.config import EvaluationConfig
from verl_aer.evaluation.report import comparison_table, groups_of, summary, summary_table
from verl_aer.evaluation.run import load_reward, open_evaluation, sample_batches, write_report
from verl_aer.evaluation.sampler import Generation, Sampling
from verl_aer.evaluation.samples import SampleStore, gather, read_run
from verl_aer.evaluation.statistics import (
    BOOTSTRAP_RESAMPLES,
    Answers,
    bootstrap,
    is_significant,
    maj_at_k,
    majority,
    pass_at_k,
    pass_at_k_of,
)


def answers(correct: str, texts: list[str] | None = None, problem: str = "p", source: str = "s", level: str = "all"):
    """``"110"``: right, right, wrong."""
    right = tuple(letter == "1" for letter in correct)
    texts = texts or ["right" if is_right else f"wrong {place}" for place, is_right in enumerate(right)]
    n = len(right)
    return Answers(problem, source, level, right, tuple(texts), tuple(range(1, n + 1)), (0.5,) * n)


# ------------------------------------------------------------------ pass@k, maj@k


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_all_draws_with_a_right_answer(n):
    for c in range(n + 1):
        drawn = [1] * c + [0] * (n - c)
        for k in range(1, n + 1):
            enumerated = np.mean([any(draw) for draw in itertools.combinations(drawn, k)])
            assert pass_at_k(n, c)[k - 1] == pytest.approx(enumerated, abs=1e-12)


def test_pass_at_k_stays_exact_where_factorials_overflow():
    # 1 - C(1999, 1000)/C(2000, 1000) = 1 - 1000/2000
    assert pass_at_k(n=2000, c=1)[999] == pytest.approx(0.5, rel=1e-12)


def test_numbers_of_answers_out_of_range_are_refused():
    for n, c in ((0, 0), (3, 4), (3, -1)):
        with pytest.raises(ValueError, match=f"got n = {n}, c = {c}"):
            pass_at_k(n, c)


@pytest.mark.parametrize(
    ("correct", "texts", "expected"),
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
def test_majority_and_its_ties(correct, texts, expected):
    assert majority([letter == "1" for letter in correct], texts) == expected


def test_maj_at_k_is_the_mean_over_blocks():
    problem = answers("110" + "100" + "1", ["4", "4", "5", "4", "5", "5", "4"])
    assert maj_at_k(problem, 3) == 0.5
    assert maj_at_k(problem, 1) == pytest.approx(4 / 7)
    assert maj_at_k(problem, 7) == 1.0
    with pytest.raises(ValueError, match="maj@8 needs at least 8 answers, problem p has 7"):
        maj_at_k(problem, 8)
    assert list(summary([problem])["all"]["maj@k"]) == ["2", "4", "7"]


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Problems drawn from a known distribution of difficulties: 95 % of the intervals have its pass@k in them."""
    rng, n, problems, k = np.random.default_rng(0), 8, 60, 4
    rates = rng.beta(0.5, 1.0, size=200_000)
    truth = 1 - ((1 - rates) ** k).mean()
    covered = []
    for _ in range(400):
        correct = rng.binomial(n, rng.beta(0.5, 1.0, size=problems))
        (value,) = bootstrap(np.array([[pass_at_k(n, c)[k - 1]] for c in correct]))
        covered.append(value.low <= truth <= value.high)
    # 400 intervals: a standard deviation is 1.1 %; a percentile bootstrap over 60 problems is a little narrow.
    assert 0.91 <= np.mean(covered) <= 0.98


def test_interval_of_a_known_distribution():
    # 400 problems, half of them solved: the standard error is 0.5/sqrt(400) = 0.025, the interval +- 1.96 of it.
    halves, ones = bootstrap(np.stack([np.repeat([0.0, 1.0], 200), np.ones(400)], axis=1))
    assert halves.mean == 0.5
    assert halves.low == pytest.approx(0.5 - 0.049, abs=0.006)
    assert halves.high == pytest.approx(0.5 + 0.049, abs=0.006)
    assert ones == (1.0, 1.0, 1.0)


def test_the_bootstrap_is_that_of_a_loop_over_resamples():
    values = np.random.default_rng(1).random((30, 3))
    picks = np.random.default_rng(7).integers(0, 30, size=(BOOTSTRAP_RESAMPLES, 30))
    means = np.array([values[pick].mean(axis=0) for pick in picks])
    for column, estimate in enumerate(bootstrap(values, seed=7)):
        low, high = np.quantile(means[:, column], [0.025, 0.975])
        assert estimate == pytest.approx((values[:, column].mean(), low, high), abs=1e-12)


def test_the_curve_of_several_problems():
    problems = [answers(correct, problem=str(number)) for number, correct in enumerate(["1100", "0000", "1111"] * 5)]
    curve = bootstrap(pass_at_k_of(problems, range(1, 5)))
    assert [value.mean for value in curve] == pytest.approx(
        [np.mean([pass_at_k(4, c)[k] for c in (2, 0, 4)]) for k in range(4)]
    )
    assert all(value.low <= value.mean <= value.high for value in curve)
    assert all(first.mean <= second.mean for first, second in itertools.pairwise(curve))


def test_a_paired_difference_sees_what_the_intervals_of_both_hide():
    rng = np.random.default_rng(0)
    hard = rng.random(200) < 0.5
    learnt = hard & (np.arange(200) % 3 == 0)
    before = [answers("0000" if is_hard else "1110", problem=str(number)) for number, is_hard in enumerate(hard)]
    after = [answers("1000", problem=str(number)) if learnt[number] else before[number] for number in range(200)]
    table = comparison_table({"before": [before], "after": [list(reversed(after))], "same": [before]}, ks=[1])
    _, changed, same = table.rows[:3]
    assert changed[5].startswith(f"+{0.25 * learnt.mean():.3f}")
    assert (changed[6], same[5:]) == ("yes", ["+0.000 [+0.000, +0.000]", "no"])
    first, second = (bootstrap(pass_at_k_of(problems, [1]))[0] for problems in (before, after))
    assert first.high > second.low
    with pytest.raises(ValueError, match="after: the problems differ; 2 are in only one of two runs, such as 0"):
        comparison_table({"before": [before], "after": [[*after[1:], answers("1", problem="x")]]}, ks=[1])


def test_a_difference_is_significant_where_its_interval_excludes_0():
    found = bootstrap(
        np.stack([np.linspace(-0.2, 1.0, 50), np.linspace(-1.0, 0.2, 50), np.linspace(-1, 1, 50)], axis=1)
    )
    assert [is_significant(difference) for difference in found] == [True, True, False]


def test_metrics_that_a_run_lacks_are_not_compared():
    more, fewer = [answers("1100")], [answers("10")]
    table = comparison_table({"more": [more], "fewer": [fewer]})
    assert {row[2] for row in table.rows} == {"pass@1", "pass@2", "tokens", "mean NLL"}  # maj@4 is not maj@2


def test_groups_are_sources_and_levels_where_there_are_several():
    problems = [answers("10", problem="a", level="1"), answers("11", problem="b", level="2")]
    assert groups_of(problems) == {"level 1": [0], "level 2": [1], "all": [0, 1]}
    assert groups_of([*problems, answers("1", source="t")])["t"] == [2]
    assert groups_of(problems[:1]) == {"all": [0]}
    found = summary(problems)
    assert found["level 2"]["pass@k"]["1"]["mean"] == 1.0
    assert found["all"]["solved by all"] == 1
    assert found["all"]["solved by none"] == 0
    assert found["all"]["tokens"]["mean"] == 1.5
    assert found["all"]["mean NLL"]["mean"] == 0.5
    table = summary_table([problems])
    assert [row[0] for row in table.rows] == ["level 1", "level 2", "all"]
    assert table.header == ["", "problems", "pass@1", "pass@2", "maj@2", "tokens", "mean NLL"]


def test_one_answer_per_problem_has_no_majority():
    assert summary([answers("1")])["all"]["maj@k"] == {}
    assert summary_table([[answers("1")]]).header == ["", "problems", "pass@1", "tokens", "mean NLL"]


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


def config_of(folder: Path, file: Path, score: str = "mine:reward", **sampling: float) -> EvaluationConfig:
    # Named like the folder, as if each evaluation had another model.
    return EvaluationConfig(
        model=folder.name, data=[file], out=folder, sampling=Sampling(n=2, **sampling), reward=score, batch=2
    )


def run(config: EvaluationConfig, sampler: Oracle, only: int | None = None) -> list[Answers]:
    batches, store = open_evaluation(config)
    sample_batches(batches, store.missing(len(batches))[:only], store, sampler, reward)
    return gather(store.samples())


def test_an_evaluation_resumes_where_it_was(tmp_path):
    file, first, second = data_file(tmp_path), Oracle(), Oracle()
    run(config_of(tmp_path / "out", file), first, only=2)
    assert first.asked == ["q0", "q1", "q2", "q3"]
    with pytest.raises(
        ValueError, match="2 of 3 batches are complete; repeat the same `verl-aer evaluate` to resume it"
    ):
        read_run(tmp_path / "out")
    # What a worker leaves that is killed while it writes.
    (tmp_path / "out" / "samples" / ".00002.jsonl.0123456789abcdef.jsonl").write_text('{"problem"')
    found = run(config_of(tmp_path / "out", file), second)
    assert second.asked == ["q4"]
    assert found == run(config_of(tmp_path / "whole", file), Oracle()) == read_run(tmp_path / "out")
    assert [sum(problem.correct) for problem in found] == [2, 0, 2, 0, 2]
    assert [problem.level for problem in found] == ["0", "1", "0", "1", "0"]
    write_report(tmp_path / "out", found, "mine")
    assert "0.600" in (tmp_path / "out" / "summary.md").read_text()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["all"]["pass@k"]["2"]["mean"] == 0.6
    assert (tmp_path / "out" / "pass_at_k.png").stat().st_size > 1000


def test_samples_of_other_settings_are_refused(tmp_path):
    SampleStore(tmp_path / "out", {"model": "a", "n": 2})
    SampleStore(tmp_path / "out", {"model": "a", "n": 2})
    with pytest.raises(ValueError, match=r"another evaluation \(n: 2 there, 3 now\); choose another --out"):
        SampleStore(tmp_path / "out", {"model": "a", "n": 3})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": []}, "row 2: prompt: not a list of messages; `verl-aer data inspect"),
        ({"extra_info": {"question_id": "q0", "level": 0}}, "row 2: problem q0 occurs twice"),
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
        (["--n", "0"], "--n must be at least 1"),
        (["--temperature", "0"], "--n above 1 needs --temperature above 0"),
        (["--top-p", "0", "--batch", "0"], "--top-p must be above 0 and at most 1; --batch must be at least 1"),
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
    batches, store = open_evaluation(config_of(tmp_path / "out", data_file(tmp_path)))
    with pytest.raises(ValueError, match="must return a dict with 'score' and 'acc'"):
        sample_batches(batches, [0], store, Oracle(), lambda **_: 1.0)
    assert not (tmp_path / "out" / "samples").exists()


WORKER = """
import os, pickle, sys, time
from verl_aer.evaluation.run import open_evaluation

task = pickle.load(sys.stdin.buffer)
_, store = open_evaluation(task.config)
for number in task.batches:
    {instead}
    store.add(number, [{{"batch": number, "pid": os.getpid(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}}])
"""


def sample_with(instead: str, config: EvaluationConfig, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """The samples of workers that do `instead` before they add a batch."""
    monkeypatch.setattr(workers, "WORKER_COMMAND", [sys.executable, "-c", WORKER.format(instead=instead)])
    batches, store = open_evaluation(config)
    workers.sample_with_workers(config, batches, store)
    return list(store.samples())


def test_workers_share_the_missing_batches_and_the_gpus(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    config = replace(config_of(tmp_path / "out", data_file(tmp_path, problems=9)), data_parallel=2, tensor_parallel=2)
    open_evaluation(config)[1].add(0, [])
    samples = sample_with("pass", config, monkeypatch)
    assert [sample["batch"] for sample in samples] == [1, 2, 3, 4]
    assert [sample["gpus"] for sample in samples] == ["4,5", "6,7", "4,5", "6,7"]
    assert len({sample["pid"] for sample in samples}) == 2
    assert "4/4 batches, 14 answers" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--data-parallel 3 times --tensor-parallel 2 needs 6 GPUs, there are 4"):
        sample_with("pass", replace(config, data_parallel=3), monkeypatch)


def test_a_worker_that_dies_ends_the_others_and_its_cause_is_told(tmp_path, monkeypatch):
    config = replace(config_of(tmp_path / "out", data_file(tmp_path)), data_parallel=2)
    pid = tmp_path / "pid"
    sleep = f"(open({str(pid)!r}, 'w').write(str(os.getpid())), time.sleep(600))"
    # The first worker waits for the second one, and fails.
    wait = f"while number == 0 and not os.path.exists({str(pid)!r}): time.sleep(0.1)"
    instead = f"{wait}\n    if number == 0: raise RuntimeError('no weights')\n    {sleep}"
    with pytest.raises(InputError) as error:
        sample_with(instead, config, monkeypatch)
    log = tmp_path / "out" / "worker-0.log"
    assert str(error.value).splitlines() == [
        "the run failed (exit code 1):",
        "  RuntimeError: no weights",
        f"whole log: {log}",
    ]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_rewards_are_found_by_file_and_by_module():
    assert load_reward("examples/countdown/reward.py:compute_score")("m", "1+2", "1,2=3")["acc"] == 1.0
    assert load_reward("examples.countdown.reward:compute_score")("m", "1+2", "1,2=3")["acc"] == 1.0


def test_seeds_and_bounds_of_the_sampling():
    assert Sampling().problems() == []
    assert Sampling(n=1, temperature=0.0).problems() == []


def test_runs_are_compared_side_by_side(tmp_path, capsys):
    file = data_file(tmp_path, problems=40)
    run(config_of(tmp_path / "none", file), Oracle())

    class Better(Oracle):
        def generate(self, prompts):
            return [
                [Generation(str(int(messages[0]["content"].split()[0]) + 1), 2, 0.1, "stop")] * 2
                for _, messages in prompts
            ]

    run(config_of(tmp_path / "aer", file), Better())
    out = tmp_path / "compared.png"
    runs = [f"{name}={tmp_path / name}" for name in ("none", "aer")]
    assert main(["compare", *runs, "--k", "1", "--k", "2", "--markdown", "--out", str(out)]) == 0
    table = capsys.readouterr().out
    assert "|  | problems | metric | run | mean | minus none | 95 % CI excludes 0 |" in table
    assert "| all | 40 | pass@1 | aer | 1.000 [1.000, 1.000] | +0.500 [" in table
    # The first run answers all questions of level 0 too.
    verdicts = [line.split(" | ")[-1] for line in table.splitlines() if "| pass@2 | aer |" in line]
    assert verdicts == ["no |", "yes |", "yes |"]
    assert out.stat().st_size > 1000
    assert main(["compare", runs[0]]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == [
        *("problems", "pass@1", "pass@2", "maj@2", "tokens", "mean", "NLL"),
    ]
    assert main(["compare", *runs, "--k", "3"]) == 2
    assert "none: pass@3 needs 3 answers per problem, there are 2" in capsys.readouterr().err
    assert main(["compare", str(tmp_path), runs[0]]) == 2
    assert "no samples" in capsys.readouterr().err


def test_evaluations_of_different_settings_are_not_compared(tmp_path, capsys):
    file = data_file(tmp_path)
    other_file = data_file(tmp_path / "other")
    run(config_of(tmp_path / "base", file), Oracle())
    # Chance, and the number of answers, may differ; the name of a data file says nothing.
    run(config_of(tmp_path / "again", file.rename(tmp_path / "renamed.parquet"), seed=1), Oracle())
    assert main(["compare", str(tmp_path / "base"), str(tmp_path / "again")]) == 0
    rows = pq.read_table(other_file).to_pylist()
    rows[0]["prompt"][0]["content"] = "0 + 1? Think first."
    pq.write_table(pa.Table.from_pylist(rows), other_file)
    run(config_of(tmp_path / "hotter", other_file, "yours:reward", temperature=1.2, max_tokens=64), Oracle())
    run(config_of(tmp_path / "narrow", tmp_path / "renamed.parquet", top_p=0.9), Oracle())
    capsys.readouterr()
    assert main(["compare", *(str(tmp_path / name) for name in ("base", "again", "hotter", "narrow"))]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "evaluations with different settings cannot be compared (SHA-256 of --data: " in said.err
    for told in (
        "--reward: 'mine:reward' in base, 'yours:reward' in hotter",
        "--temperature: 1.0 in base, 1.2 in hotter",
        "--max-tokens: 2048 in base, 64 in hotter",
        "--top-p: 1.0 in base, 0.9 in narrow",
    ):
        assert told in said.err
    assert "again" not in said.err.replace("in base", "")
