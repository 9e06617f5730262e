"""Determine from its log whether a run failed, and the cause."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from pathlib import Path

CAUSE_LINES = 25
"""Maximum number of lines of a cause that are printed on the terminal."""

CONSEQUENCES = (
    "RayTaskError",
    "ActorDiedError",
    "RayActorError",
    "ActorUnavailableError",
    "EngineDeadError",
    "Engine core initialization failed",
    "CancelledError",
    "KeyboardInterrupt",
)
"""Exceptions that report the end of another process; the exception of that process is the cause."""

MESSAGE_ENDS = (
    "Traceback",
    "Set the environment variable",
    "The above exception",
    "During handling",
    "[verl_aer]",
)
"""Prefixes of the first line after an exception's message: a traceback, Hydra's advice or our log lines."""

_END_OF_TRAINING = re.compile(r"""^[("']*Final validation metrics: |^\[verl_aer\] stopped on request after step """)
"""veRL's line after the last step, a Python literal that may be wrapped, or our line after a requested stop."""

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PREFIX = re.compile(r"^(?:\([^()]*\bpid=\d+[^()]*\)\s?)?(?:\[rank\d+\]:\s)?")
_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Interrupt)(?:\([\w.]+\))?(?::|$)")


def explain_failure(returncode: int | None, log_path: Path) -> list[str]:
    """Return the lines to print: how the run ended, the cause of a failure, and the path of the whole log.

    Args:
        returncode: as `subprocess.Popen.returncode`, -n if signal n ended the process. If it is None, the log decides
            whether the run failed.
        log_path: file with the complete output of the run.
    """
    lines = [strip_prefix(line) for line in log_path.read_text(errors="replace").splitlines()]
    if returncode is None:
        said = _from_the_log(lines)
    elif returncode == 0:
        said = ["the run succeeded (exit code 0)"]
    else:
        how = f"exit code {returncode}"
        if returncode < 0:
            how = f"killed by {signal.Signals(-returncode).name}"
            if returncode == -signal.SIGKILL:
                how += ", possibly because memory ran out"
        said = [f"the run failed ({how}):", *_indented(root_cause(lines))]
    return [*said, f"whole log: {log_path}"]


def _from_the_log(lines: Sequence[str]) -> list[str]:
    ends = [number for number, line in enumerate(lines) if _END_OF_TRAINING.match(line)]
    after = lines[ends[-1] + 1 :] if ends else lines
    failed = any(_EXCEPTION.match(line) and not _is_consequence(line) for line in after)
    if ends and not failed:
        return ["the run succeeded: it trained to its end"]
    if ends:
        return ["the run trained to its end; after that:", *_indented(root_cause(after))]
    if any(_EXCEPTION.match(line) for line in lines):
        return ["the run failed:", *_indented(root_cause(lines))]
    return [
        "the log contains neither the end of training nor an exception; its last lines:",
        *_indented(root_cause(lines)),
    ]


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _is_consequence(line: str) -> bool:
    return any(name in line for name in CONSEQUENCES)


def root_cause(lines: Sequence[str]) -> list[str]:
    """Return the exception that caused the failure, with its message; the last lines of the log if there is none.

    Ray repeats a remote exception inside its `RayTaskError`, and other processes then report that their peer died. The
    last exception that is not such a consequence is the cause.
    """
    cleaned = [strip_prefix(line) for line in lines]
    exceptions = [number for number, line in enumerate(cleaned) if _EXCEPTION.match(line)]
    if not exceptions:
        return [line for line in cleaned if line.strip()][-CAUSE_LINES:]
    causes = [number for number in exceptions if not _is_consequence(cleaned[number])]
    start = (causes or exceptions)[-1]
    message = [cleaned[start]]
    for line in cleaned[start + 1 : start + CAUSE_LINES]:
        if not line.strip() or line.startswith(MESSAGE_ENDS):
            break
        message.append(line)
    return message


def strip_prefix(line: str) -> str:
    """Remove color codes, the `(TaskRunner pid=123) ` of Ray and vLLM, and the `[rank0]: ` of torch from a line.

    >>> strip_prefix("(TaskRunner pid=123, ip=10.0.0.1) [verl_aer] ready")
    '[verl_aer] ready'
    """
    return _PREFIX.sub("", _ANSI.sub("", line).rstrip("\r\n"))
