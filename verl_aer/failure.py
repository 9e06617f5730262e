"""What a failed run died of, from its log."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from pathlib import Path

CAUSE_LINES = 25
"""Most lines of a cause that are repeated on the terminal; the log has the rest."""

CONSEQUENCES = (
    "RayTaskError",
    "ActorDiedError",
    "RayActorError",
    "ActorUnavailableError",
    "EngineDeadError",
    "CancelledError",
    "KeyboardInterrupt",
)
"""Exceptions that report the end of another process, whose own exception is the cause."""

MESSAGE_ENDS = (
    "Traceback",
    "Set the environment variable",
    "The above exception",
    "During handling",
    "[verl_aer]",
)
"""How the first line after an exception's message begins: a traceback, Hydra's advice or our own lines."""

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_RAY_PREFIX = re.compile(r"^\([^()]*\bpid=\d+[^()]*\)\s?")
_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Za-z_]\w*(?:Error|Exception|Interrupt)(?:\([\w.]+\))?(?::|$)")


def explain_failure(returncode: int, log_path: Path) -> list[str]:
    """Lines to print, the last ones last: how the run ended, its cause, and where the whole log is.

    Args:
        returncode: as `subprocess.Popen.returncode`: -n if signal n ended the process.
        log_path: all output of the run.
    """
    how = f"exit code {returncode}"
    if returncode < 0:
        how = f"killed by {signal.Signals(-returncode).name}"
        if returncode == -signal.SIGKILL:
            how += ", as the system does when memory runs out"
    cause = root_cause(log_path.read_text(errors="replace").splitlines())
    return [f"the run failed ({how}):", *(f"  {line}" for line in cause), f"whole log: {log_path}"]


def root_cause(lines: Sequence[str]) -> list[str]:
    """The exception that started the failure, with its message; the last lines of the log if it has none.

    Ray repeats a remote exception inside its own `RayTaskError`, and other processes then report that their
    peer died: the last exception that is not such a consequence is the cause.
    """
    cleaned = [strip_prefix(line) for line in lines]
    exceptions = [number for number, line in enumerate(cleaned) if _EXCEPTION.match(line)]
    if not exceptions:
        return [line for line in cleaned if line.strip()][-CAUSE_LINES:]
    causes = [number for number in exceptions if not any(name in cleaned[number] for name in CONSEQUENCES)]
    start = (causes or exceptions)[-1]
    message = [cleaned[start]]
    for line in cleaned[start + 1 : start + CAUSE_LINES]:
        if not line.strip() or line.startswith(MESSAGE_ENDS):
            break
        message.append(line)
    return message


def strip_prefix(line: str) -> str:
    """`line` without colour codes and without Ray's `(TaskRunner pid=123) `.

    >>> strip_prefix("(TaskRunner pid=123, ip=10.0.0.1) [verl_aer] ready")
    '[verl_aer] ready'
    """
    return _RAY_PREFIX.sub("", _ANSI.sub("", line).rstrip("\r\n"))
