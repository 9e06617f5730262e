"""Run a callback after a module is first imported, at no cost in processes that never import it.

A run of veRL has a dozen processes, and each of them loads every plug-in. Importing veRL's trainers or engines in all
of them, only to register classes, would add seconds to each.

The import of veRL's module must succeed even if the callback (an action) fails. A failure is therefore logged once and
kept in ``failures``; code that needs the action's result raises an error with it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

Action = Callable[[], object]

logger = logging.getLogger(__name__)

failures: list[str] = []
"""Failures in this process so far, one sentence per action."""


def attempt(action: Action) -> None:
    """Call ``action``; an exception is logged at ERROR with its traceback and kept in ``failures``."""
    try:
        action()
    except Exception as error:
        reason = f"{action.__module__}.{action.__qualname__} failed: {type(error).__name__}: {error}"
        failures.append(reason)
        logger.exception("verl_aer is disabled, veRL runs without it. %s. `verl-aer doctor` shows the fix.", reason)


class AfterImport(MetaPathFinder):
    """Finder that delegates to the other finders, and runs the actions after a module has been executed."""

    def __init__(self) -> None:
        self._awaited: dict[str, list[Action]] = {}

    def add(self, module_name: str, action: Action) -> None:
        """Run ``action`` after the next import of the module."""
        self._awaited.setdefault(module_name, []).append(action)

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        """Return the module's spec with a loader that runs the actions; None for a module without actions."""
        if fullname not in self._awaited:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec

        execute = spec.loader.exec_module

        def execute_and_act(module: ModuleType) -> None:
            execute(module)
            for action in self._awaited.pop(fullname):
                attempt(action)

        spec.loader.exec_module = execute_and_act
        return spec


_after_import = AfterImport()


def after_import(module_name: str, action: Action) -> None:
    """Call ``action`` right after ``module_name`` is imported, or now if it already is.

    An exception in the action does not affect the import; see ``attempt``.

    Args:
        module_name: full dotted name. If the action imports more of a package, name the package and not its submodule:
            the whole package is then imported before the action runs.
        action: called once, without arguments.
    """
    if module_name in sys.modules:
        attempt(action)
        return
    if _after_import not in sys.meta_path:
        sys.meta_path.insert(0, _after_import)
    _after_import.add(module_name, action)
