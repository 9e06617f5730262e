"""The math reward: verdicts, extraction, limits, and cleanup after its caller."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from verl_aer.rewards import exact, math_reward, verifier
from verl_aer.rewards.answer_text import find_answer, normalize
from verl_aer.rewards.math_reward import check_ground_truth, compute_score
from verl_aer.rewards.verifier import Verifier, VerifierError

HERE = Path(__file__).parent
LIMIT_S = 1.0
LATE_S = 5.0
"""Most that a limit may be late: other tests run at the same time."""
HOSTILE = (
    "9^{9^{9^9}}",
    "10000000!",
    "2^{2^{2^{2^{2^2}}}}",
    "(1+x)^{999999}+x",
    r"\binom{10^9}{10^8}",
    r"\sum_{k=1}^{10^9} \sin(k)",
    "(" * 450 + "1" + ")" * 450,
)


def table(name: str, columns: int) -> list[list[str]]:
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    assert all(len(row) == columns for row in rows), [row for row in rows if len(row) != columns]
    return rows


def score(answer: str, truth: str, **limits: float) -> math_reward.MathScore:
    return compute_score("mathematics", f"\\boxed{{{answer}}}", truth, {}, **limits)


def verdict(result: math_reward.MathScore) -> str:
    return "=" if result["score"] else "≠"


def processes_below(pid: int) -> set[int]:
    """The children of `pid` and theirs."""
    children = psutil.Process(pid).children(recursive=True)
    return {child.pid for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE}


def wait_until(condition, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(scope="module", autouse=True)
def started():
    """The limits are those of answers: the start of the verifier is paid for here."""
    assert score("x+1", "1+x")["score"] == 1.0
    yield
    math_reward._VERIFIER.close()


# Verdicts.


def test_every_hard_pair_has_its_verdict():
    rows = table("hard_answers.tsv", 3)
    assert len(rows) >= 300
    assert 0.45 <= sum(row[0] == "=" for row in rows) / len(rows) <= 0.55
    assert len({tuple(row) for row in rows}) == len(rows)
    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(lambda row: score(row[2], row[1]), rows))
    wrong = [(*row, result["reason"]) for row, result in zip(rows, results, strict=True) if verdict(result) != row[0]]
    assert wrong == []


def test_math_verifys_own_cases_or_the_reason_for_another_verdict():
    wrong = []
    for theirs, ours, truth, response, why in table("math_verify_cases.tsv", 5):
        result = compute_score("mathematics", response, truth)
        if verdict(result) != ours:
            wrong.append((ours, truth, response, result))
        assert bool(why) == (theirs != ours), (truth, response)
    assert wrong == []


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}} is it", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{x\right.}", r"\left\{x\right."),
        (r"\boxed {7}", "7"),
        (r"\boxed 7.", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed{x = \boxed{5}}", "5"),
        (r"\boxed{1} but \boxed{2", ""),
        (r"\boxed{}", ""),
        (r"\boxed", ""),
        (r"<think>\boxed{1}</think> \boxed{2}", "2"),
        (r"<think>\boxed{1}</think>", ""),
        ("9 - 4 = 5\n#### 5", "5"),
        ("#### 4\n#### 1,234 \n", "1,234"),
        ("The answer is 5.", "5"),
        ("The answer is 3.5 cm. I am sure.", "3.5 cm"),
        ("the answer is: $\\frac{1}{2}$, as was to be shown", r"\frac{1}{2}"),
        ("Answer: 5", "5"),
        ("**Answer:** 5\nThank you", "5"),
        ("Answer: **5**", "5"),
        ("Final answer: 5", "5"),
        ("FINAL ANSWER:\n5", "5"),
        ("Final Answer: The final answer is $5$. I hope it is correct.", "5"),
        ("Final Answer: the largest $n$ is 34.", "34"),
        ("The answer is 4. No: the answer is 5.", "5"),
        ("The final answer is 5.\nThe answer is 6.", "5"),
        ("The answer is 5!", "5!"),
        ("The answer is 4. \\boxed{5}", "5"),
        ("The answer is $28$ %.", "28 %"),
        ("The answer is \\(x^2\\).", "x^2"),
        ("The answer is \\[ x^2 \\]", "x^2"),
        ("The answer is $5", "$5"),
        ("42", "42"),
        ("  x = 42 ", "x = 42"),
        ("word " * 21, ""),
        ("a\nb", ""),
        ("", ""),
        ("\\boxed{1}" + " " * 100_000, ""),
        ("x" * 200_000 + "\\boxed{1}", "1"),
    ],
)
def test_the_answer_is_found(response, answer):
    assert find_answer(response) == answer


# The form of a result.


def test_a_result_has_the_same_keys_and_types_whatever_it_says():
    results = [score("5", "5"), score("6", "5"), score("x", "5"), compute_score("m", None, "5"), score("5", "")]
    assert [list(result) for result in results] == [["score", "acc", "pred", "reason"]] * len(results)
    assert {tuple(type(value) for value in result.values()) for result in results} == {(float, float, str, str)}
    assert results[0] == {"score": 1.0, "acc": 1.0, "pred": "5", "reason": ""}
    assert results[1] == {"score": 0.0, "acc": 0.0, "pred": "6", "reason": "not equal"}


@pytest.mark.parametrize("response", [None, b"5", 5, ["5"], {"5": 5}, float("nan"), object()])
def test_a_response_of_another_type_is_a_zero(response):
    assert compute_score("m", response, "5") == {"score": 0.0, "acc": 0.0, "pred": "", "reason": "no text"}


@pytest.mark.parametrize(
    ("truth", "why"),
    [
        (None, "it is no text but NoneType"),
        (b"5", "it is no text but bytes"),
        (5, "it is no text but int"),
        (["5"], "it is no text but list"),
        (float("nan"), "it is no text but float"),
        ("", "it is empty"),
        (" \n", "it is empty"),
        (r"\boxed{}", "it is empty"),
        ("1" * 1001, "it is longer than 1000 characters"),
        ("$.$", "nothing is left without its units and signs"),
        (r"\frac{1}{", "not a formula"),
        (r"\frac{1}{0}", "not a formula"),
        ("[3,1)", "not a formula"),
    ],
)
def test_an_unreadable_ground_truth_is_a_zero_and_is_found_beforehand(truth, why):
    assert check_ground_truth(truth) == why
    result = score("x+1", truth)
    assert (result["score"], result["reason"]) == (0.0, f"ground truth unreadable: {why}")


@pytest.mark.parametrize(
    "truth",
    [
        "5",
        "1,234",
        "50%",
        "A",
        "(C)",
        r"\text{Monday}",
        "204_5",
        "x+1",
        "[0,1)",
        r"\{1,2\}",
        "so \\boxed{x^2}",
        "1\n#### 7",
    ],
)
def test_a_readable_ground_truth_passes_the_check(truth):
    assert check_ground_truth(truth) is None


def test_a_ground_truth_that_cannot_be_compared_in_time_is_refused():
    assert check_ground_truth("9^{9^{9^9}}", time_limit_s=LIMIT_S) == "time limit"


def test_a_long_answer_is_a_zero_and_its_beginning_is_kept():
    result = score("1" * 1001, "1" * 1000)
    assert (result["score"], result["reason"], result["pred"]) == (0.0, "answer too long", "1" * 200)
    assert score("1" * 1000, "1" * 1000)["score"] == 1.0


def test_the_answer_kept_can_be_written_in_utf8():
    assert score("\ud800 5", "5")["pred"] == "? 5"


# Without the verifier.


class NoVerifier:
    def ask(self, *request):
        raise AssertionError(f"asked the verifier: {request}")


@pytest.mark.parametrize(
    ("truth", "answer"),
    [
        ("5", "5"),
        ("5", "6"),
        ("1/2", "0.5"),
        (r"\frac{1}{2}", "0.51"),
        ("1,234", "1234"),
        ("x^2+1", "x^2 + 1"),
        ("50%", "0.5"),
        ("A", "(b)"),
        (r"\text{Monday}", "tuesday"),
        ("204_5", "204_6"),
        ("1/3", "0.333333"),
    ],
)
def test_plain_answers_need_no_verifier(monkeypatch, truth, answer):
    monkeypatch.setattr(math_reward, "_VERIFIER", NoVerifier())
    assert score(answer, truth)["reason"] in ("", "not equal")


def test_plain_answers_take_less_than_a_millisecond():
    started = time.process_time()
    for number in range(2000):
        score(str(number), "1000")
    assert (time.process_time() - started) / 2000 < 1e-3


def test_numbers_are_compared_exactly():
    assert exact.decide("0.1", "0.1000000000000000000000001") is False
    assert exact.decide("1" + "0" * 300, "1" + "0" * 299 + "1") is False
    assert exact.decide("1" * 500, "1" * 499 + "2") is None
    # Rounded half away from zero, on both sides of it.
    assert exact.decide(r"\frac{1}{2000000}", "0.000001") is False
    assert exact.decide(r"-\frac{2}{3}", "-0.666667") is True
    assert exact.decide(r"-\frac{2}{3}", "0.666667") is False


def test_the_import_is_light():
    program = (
        "import sys, time\n"
        "before = time.process_time()\n"
        "import verl_aer.rewards.math_reward as reward\n"
        "took = time.process_time() - before\n"
        "assert reward.compute_score('m', 'The answer is 5', '5')['score'] == 1.0\n"
        "heavy = {'math_verify', 'sympy', 'latex2sympy2_extended', 'verl', 'ray', 'torch', 'vllm', 'numpy'}\n"
        "print(took, sorted(heavy & set(sys.modules)), reward._VERIFIER._process)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    took, rest = done.stdout.split(" ", 1)
    assert rest.strip() == "[] None"
    assert float(took) < 1.0


# Limits.


def timed_hostile(expression: str) -> tuple[math_reward.MathScore, float]:
    started = time.monotonic()
    result = score(expression, "x^2+1", time_limit_s=LIMIT_S)
    return result, time.monotonic() - started


@pytest.mark.parametrize("thread", [False, True], ids=["main thread", "other thread"])
@pytest.mark.parametrize("expression", HOSTILE, ids=[text[:20] for text in HOSTILE])
def test_a_hostile_expression_ends_at_its_limit(expression, thread):
    if thread:
        with ThreadPoolExecutor(1) as threads:
            result, seconds = threads.submit(timed_hostile, expression).result()
    else:
        result, seconds = timed_hostile(expression)
    assert (result["score"], result["reason"]) == (0.0, "time limit")
    assert seconds < LIMIT_S + LATE_S
    # It has not only been given up: the child that worked on it has ended.
    assert wait_until(lambda: not processes_below(math_reward._VERIFIER._process.pid), 2.0)
    assert score("(x+1)^2", "x^2+2x+1")["score"] == 1.0


@pytest.mark.parametrize(
    "response",
    [
        "{" * 1_000_000,
        "\\boxed{" * 150_000,
        "\\boxed{" + "{" * 1_000_000,
        "\\boxed{" + "{" * 50_000 + "}" * 49_000,
        "\\" * 1_000_000 + "boxed{1}",
        "answer is " * 100_000,
        "the answer is" + " " * 1_000_000,
        "$" * 1_000_000,
        "#" * 1_000_000,
        "answer:" + "$" * 90_000,
        "\\boxed{" + "1 " * 45_000 + "}",
    ],
    ids=range(11),
)
def test_a_megabyte_of_anything_is_read_at_once(response):
    started = time.process_time()
    assert compute_score("m", response, "5")["score"] == 0.0
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize("body", [" ", "\\,", "{", "1 ", "5 cm ", "\\text{", "√(", "%", "^\\circ", "1,234", "x=", "½"])
def test_the_longest_answers_are_normalized_at_once(body):
    text = (body * 1000)[:1000]
    started = time.process_time()
    normalize(text)
    exact.decide(normalize(text), normalize(text + "1"))
    assert time.process_time() - started < 0.5


def test_memory_is_limited():
    result = score("2^{2^{2^{2^{2^2}}}}", "7", memory_limit_mb=16, time_limit_s=30.0)
    assert (result["score"], result["reason"]) == (0.0, "memory limit")
    assert score("(x+1)^2", "x^2+2x+1", memory_limit_mb=256)["score"] == 1.0


def test_answers_beside_a_hostile_one_do_not_wait_for_it():
    with ThreadPoolExecutor(1) as threads:
        hostile = threads.submit(score, "9^{9^{9^9}}", "7", time_limit_s=6.0)
        for _ in range(3):
            assert score("(x+1)^2", "x^2+2x+1")["score"] == 1.0
        assert not hostile.done()
        assert hostile.result()["reason"] == "time limit"


def test_many_threads_get_their_own_verdicts():
    truths = [f"{number}x+{number + 1}" for number in range(1, 13)]
    with ThreadPoolExecutor(12) as threads:
        right = list(threads.map(lambda truth: score("+".join(reversed(truth.split("+"))), truth)["score"], truths))
        wrong = list(threads.map(lambda truth: score(truth + "+1", truth)["score"], truths))
    assert right == [1.0] * 12
    assert wrong == [0.0] * 12


@pytest.mark.parametrize("limits", [{"time_limit_s": 0}, {"time_limit_s": -1.0}, {"memory_limit_mb": 0}])
def test_no_limit_is_an_error_of_the_configuration(limits):
    with pytest.raises(ValueError, match="limits must be above 0"):
        score("x+1", "x+2", **limits)


# The verifier's process.


def test_a_verifier_that_was_killed_is_replaced():
    os.kill(math_reward._VERIFIER._process.pid, signal.SIGKILL)
    assert wait_until(lambda: math_reward._VERIFIER._process.poll() is not None)
    assert score("(x+1)^2", "x^2+2x+1")["score"] == 1.0


def test_a_verifier_that_is_killed_at_work_is_a_zero():
    with ThreadPoolExecutor(1) as threads:
        hostile = threads.submit(score, "9^{9^{9^9}}", "7", time_limit_s=20.0)
        process = math_reward._VERIFIER._process.pid
        assert wait_until(lambda: processes_below(process))
        time.sleep(0.3)
        os.kill(process, signal.SIGKILL)
        assert hostile.result(timeout=5)["reason"] == "verifier ended"
    assert score("(x+1)^2", "x^2+2x+1")["score"] == 1.0


def test_a_verifier_that_does_not_start_is_an_error_and_says_why(monkeypatch):
    monkeypatch.setattr(verifier, "_command", lambda fd: [sys.executable, "-c", "raise SystemExit('no such module')"])
    broken = Verifier()
    with pytest.raises(VerifierError, match="did not start: no such module"):
        broken.ask("1", "2", 1.0, 2**30)


def test_a_fork_of_the_caller_gets_a_verifier_of_its_own():
    before = math_reward._VERIFIER._process.pid
    pid = os.fork()
    if pid == 0:
        # The test session must not run on in the fork.
        try:
            right = score("(x+1)^2", "x^2+2x+1")["score"] == 1.0
            right = right and math_reward._VERIFIER._process.pid != before
            math_reward._VERIFIER.close()
            os._exit(0 if right else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert score("(x+1)^2", "x^2+2x+1")["score"] == 1.0


CALLER = """
import os, sys, threading, time
from verl_aer.rewards.math_reward import compute_score, _VERIFIER
assert compute_score("m", "\\\\boxed{x+1}", "1+x")["score"] == 1.0
hostile = threading.Thread(
    target=compute_score, args=("m", "\\\\boxed{9^{9^{9^9}}}", "7"), kwargs={"time_limit_s": 60.0}, daemon=True
)
hostile.start()
time.sleep(0.5)
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_no_process_is_left_when_the_caller_ends(end):
    with subprocess.Popen(
        [sys.executable, "-c", CALLER + end], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as caller:
        assert caller.stdout.readline() == "ready\n"
        below = processes_below(caller.pid)
        assert len(below) == 2
        caller.stdin.write("\n")
        caller.stdin.flush()
        # Nothing hangs at the interpreter's exit either.
        caller.wait(15)
    assert wait_until(lambda: not any(psutil.pid_exists(pid) for pid in below))


# Random strings.

LATEX_COMMANDS = r"frac sqrt text pi infty cup left( right) { } pm le % begin{pmatrix} end{pmatrix} \ sin boxed{"
LATEX_PARTS = [*(f"\\{name}" for name in LATEX_COMMANDS.split()), *"&{}()[]^_=<+-*/!,. xyie123$|:", "10", "0.5", "cm"]
PYTHON_PARTS = ["__import__('os')", "exec(", "lambda", "None", "9**9", "[]", "{}", "'", '"', "\\", "\n", ";", "1", "+"]


def random_characters(dice: random.Random, length: int) -> str:
    ranges = ((0x20, 0x7E), (0x20, 0x7E), (0x00, 0x2FF), (0x2000, 0x2BFF), (0xD800, 0xDFFF), (0xFF00, 0x1FAFF))
    return "".join(chr(dice.randint(*dice.choice(ranges))) for _ in range(length))


def random_latex(dice: random.Random, length: int) -> str:
    return "".join(dice.choice(LATEX_PARTS) for _ in range(length))


def random_number(dice: random.Random) -> str:
    forms = (
        "{a}",
        "-{a}",
        "{a}.{b}",
        r"\frac{{{a}}}{{{b}}}",
        "{a}/{b}",
        r"{a}\%",
        r"\${a}",
        "{a} cm",
        "{a}\\text{{ m}}",
    )
    return dice.choice(forms).format(a=dice.randint(0, 9999), b=dice.randint(1, 999))


def random_case(seed: int) -> tuple[str, str]:
    """A response and a ground truth. One in sixteen is a formula of a few parts, which is for math-verify to read."""
    dice = random.Random(seed)
    kind = seed % 16
    if kind == 0:
        return f"\\boxed{{{random_latex(dice, dice.randint(1, 9))}}}", dice.choice(["x^2+1", "7", r"\{1,2\}", "[0,1)"])
    if kind < 8:
        return f"The answer is {random_number(dice)}", random_number(dice)
    if kind < 12:
        return random_characters(dice, dice.randint(101, 400)), "7"
    if kind < 13:
        return random_latex(dice, dice.randint(60, 200)), random_number(dice)
    return "\n" + "".join(dice.choice(PYTHON_PARTS) for _ in range(dice.randint(60, 90))), "7"


@pytest.mark.parametrize("strings", [4000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_random_strings_neither_raise_nor_last(strings, monkeypatch, record_property):
    asked = []

    class CountingVerifier:
        def ask(self, *request):
            asked.append(threading.get_ident())
            return counted.ask(*request)

    counted = math_reward._VERIFIER
    monkeypatch.setattr(math_reward, "_VERIFIER", CountingVerifier())

    def one(seed: int) -> float:
        response, truth = random_case(seed)
        started = time.monotonic()
        result = compute_score("m", response, truth, time_limit_s=LIMIT_S)
        assert result["score"] in (0.0, 1.0)
        assert len(result["pred"]) <= math_reward.LONGEST_PRED
        assert bool(result["reason"]) == (result["score"] == 0.0)
        return time.monotonic() - started

    started = time.monotonic()
    # As many at a time as the verifier works on: none waits for its turn.
    with ThreadPoolExecutor(2) as threads:
        longest = max(threads.map(one, range(strings)))
    share = len(asked) / strings
    record_property("seconds", time.monotonic() - started)
    record_property("share that math-verify read", share)
    record_property("longest", longest)
    assert longest < LIMIT_S + LATE_S
    assert share > 0.05
