"""The base class of every exception of this package, and the exception for bad input.

::

    VerlAerError
    ├── InputError (ValueError)             a file, an argument or a value of the user is wrong
    ├── MissingExtraError (ImportError)     extras: an optional package is not installed
    ├── ConfigError (ValueError)            config.schema: the `entropy` settings, all problems at once
    ├── UnknownNameError (ValueError)       methods.registry: no such method or part
    ├── AllocationError (ValueError)        allocation: accuracies or weights that cannot be
    ├── CorrectnessError (ValueError)       correctness: a reward does not say which rollouts are correct
    ├── ShapingError (ValueError)           rollouts: rewards or advantages that a method cannot shape
    ├── StateError (ValueError)             state: a checkpoint's control state is absent, damaged or foreign
    ├── MetricsLogError (ValueError)        metrics_log: a log that cannot be read
    ├── ReplayError (ValueError)            simulate: a log that cannot be replayed
    ├── DumpError (ValueError)              evaluation.validation_dumps: a validation dump that cannot be read
    ├── BadRow (ValueError)                 data.dataset: a row without a question or an answer
    ├── VerifierError (RuntimeError)        rewards.verifier: the answer checker's process cannot be used
    ├── NodeError (ValueError)              ray_node: a node of a Slurm job cannot start its Ray
    ├── ClusterError (ValueError)           integration.ray_cluster: no cluster, or not the whole one
    ├── PluginError (RuntimeError)          integration.availability: veRL could not load this package
    ├── RunStoppedError (RuntimeError)      integration.watchdog: a run that would not end on its own
    │   ├── WorkerDiedError
    │   ├── WeightUpdateTimeoutError
    │   └── GenerationTimeoutError
    └── AdaptationError (RuntimeError)      cpu.errors: veRL or vLLM is not as the CPU adaptation expects

Each class also derives from the built-in exception in parentheses. `verl-aer` prints a `VerlAerError` as one line and
exits with code 2. A plain `ValueError` or `RuntimeError` is a bug, or is raised for a caller's mistake in Python: it
keeps its traceback.
"""

from __future__ import annotations


class VerlAerError(Exception):
    """Base class of the exceptions that this package defines."""


class InputError(VerlAerError, ValueError):
    """Bad input of the user; the message names the file, the argument or the key, and the fix."""
