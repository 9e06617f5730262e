"""Call the user's reward function once, in a child process with a time limit.

The child runs this module: ``python -m verl_aer.integration.reward_trial FOLDER``.
"""

from __future__ import annotations

import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from verl.utils.import_utils import load_extern_object

START_SECONDS = 120.0
"""Time limit of the child's imports, veRL's included."""
REWARD_SECONDS = 20.0
"""Time limit of loading the function and calling it once."""

SERVER_ARGUMENTS = ("reward_router_address", "reward_model_tokenizer")
"""Further arguments that veRL passes to the function if a reward model is served."""

CALL_FILE, READY_FILE, OUTCOME_FILE = "call", "ready", "outcome"


class Outcome(NamedTuple):
    """Result of a reward function: the ``keys`` of a dict, a ``number``, or the cause of a ``failure``.

    All are None if the function was not called, because it needs more than an answer, or if it returned another type.
    """

    keys: list[str] | None = None
    number: float | None = None
    failure: str | None = None


def try_reward(path: str, name: str, kwargs: dict[str, Any], answer: dict[str, Any]) -> Outcome:
    """Call the reward function once, with a time limit, so that it cannot harm this process.

    Args:
        path, name, kwargs: as in veRL's ``reward.custom_reward_function``.
        answer: the arguments that veRL's reward managers give: data_source, solution_str, ground_truth, extra_info.
    """
    with tempfile.TemporaryDirectory() as folder:
        call = {"path": path, "name": name, "kwargs": kwargs, "answer": answer, "sys_path": sys.path}
        Path(folder, CALL_FILE).write_bytes(pickle.dumps(call))
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, folder],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # The child needs no plug-in. Its session lets us end every process that the function starts.
            env={**os.environ, "VERL_USE_EXTERNAL_PLUGINS": "none"},
            start_new_session=True,
        )
        try:
            failure = _wait(process, Path(folder, READY_FILE))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        outcome = Path(folder, OUTCOME_FILE)
        if failure is None and outcome.exists():
            return Outcome(**json.loads(outcome.read_text()))
        return Outcome(failure=failure or f"its process died with exit code {process.returncode}")


def _wait(process: subprocess.Popen, ready: Path) -> str | None:
    """Wait for the process to end. Returns None, or the limit that it exceeded."""
    limit, what, is_ready = START_SECONDS, "its process did not start", False
    deadline = time.monotonic() + limit
    while process.poll() is None:
        if not is_ready and ready.exists():
            limit, what, is_ready = REWARD_SECONDS, "it did not return", True
            deadline = time.monotonic() + limit
        if time.monotonic() > deadline:
            return f"{what} within {limit:g} s"
        time.sleep(0.02)
    return None


def main(folder: Path) -> None:
    """Read the call from ``folder``, make it, and write the outcome there."""
    call = pickle.loads((folder / CALL_FILE).read_bytes())
    sys.path[:] = call.pop("sys_path")
    (folder / READY_FILE).touch()
    try:
        outcome = _call(**call)
    except BaseException as error:
        # SystemExit is caught too. veRL wraps the exceptions that loading a file raises.
        cause = error.__cause__ or error
        outcome = Outcome(failure=f"{type(cause).__name__}: {cause}")
    (folder / OUTCOME_FILE).write_text(json.dumps(outcome._asdict()))
    # Exit at once: threads and pools of the function would keep the process alive.
    os._exit(0)


def _call(path: str, name: str, kwargs: dict[str, Any], answer: dict[str, Any]) -> Outcome:
    function = load_extern_object(module_path=path, object_name=name)
    if needs_more(function):
        return Outcome()
    result = function(**{**answer, **kwargs})
    if isinstance(result, dict):
        return Outcome(keys=sorted(str(key) for key in result))
    try:
        return Outcome(number=float(result))
    except (TypeError, ValueError):
        return Outcome()


def needs_more(function: Any) -> bool:
    """Check whether a reward function is asynchronous or takes arguments that only a served reward model provides."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__):
        return True
    parameters = inspect.signature(function).parameters.values()
    return any(
        parameter.kind is parameter.VAR_KEYWORD or parameter.name in SERVER_ARGUMENTS for parameter in parameters
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
