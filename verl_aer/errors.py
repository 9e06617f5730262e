"""The base class of every exception of this package, and the exception for bad input.

::

    VerlAerError
    ├── InputError (ValueError)             a file, an argument or a value of the user is wrong
    ├── MissingExtraError (ImportError)     extras: an optional package is not installed
    ├── ConfigError (ValueError)            config.schema: all problems of the `entropy` settings
    ├── UnknownNameError (ValueError)       parts.base: a method or part that is not registered
    ├── AllocationError (ValueError)        parts.allocation: invalid weights
    ├── CorrectnessError (ValueError)       rollouts.groups: the correctness of rollouts is unknown or contradictory
    ├── ShapingError (ValueError)           rollouts.types: invalid shaped rewards or advantages
    ├── StateError (ValueError)             control.state_file: a missing, damaged or incompatible state file
    ├── UnusableState (ValueError)          control.state_document: the cause of a StateError, without its file
    ├── MetricsLogError (ValueError)        reports.metrics_log: an unreadable log
    ├── ReplayError (ValueError)            control.simulation: a log that cannot be replayed
    ├── DumpError (ValueError)              evaluation.validation_dumps: an unreadable validation dump
    ├── BadRow (ValueError)                 data.dataset: a row without a question or an answer
    ├── VerifierError (RuntimeError)        rewards.verifier: the process of the answer checker failed
    ├── NodeError (ValueError)              launch.ray_node: a node of a Slurm job cannot start Ray
    ├── ClusterError (ValueError)           launch.cluster_doctor: no cluster, or an incomplete one
    ├── PluginError (RuntimeError)          integration.availability: veRL could not load this package
    ├── RunStoppedError (RuntimeError)      integration.watchdog: a run without progress was stopped
    │   ├── WorkerDiedError
    │   ├── WeightUpdateTimeoutError
    │   └── GenerationTimeoutError
    └── AdaptationError (RuntimeError)      cpu.errors: veRL or vLLM differs from what the CPU adaptation expects

Each class also derives from the built-in exception in parentheses. `verl-aer` prints a `VerlAerError` as one line and
exits with code 2. Any other exception, including a plain `ValueError` or `RuntimeError`, keeps its traceback: it is a
bug or a caller's mistake in Python.
"""

from __future__ import annotations


class VerlAerError(Exception):
    """Base class of all exceptions of this package."""


class InputError(VerlAerError, ValueError):
    """Invalid input of the user; the message names the file, the argument or the key, and the fix."""
