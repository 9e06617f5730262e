"""Act on a module right after its first import, at no cost in a process that never imports it.

A run of veRL is a dozen processes, and each of them loads every plug-in. Importing veRL's trainers or engines
in all of them, only to register something there, would add seconds to each.

The module belongs to veRL, and its import must succeed whatever becomes of the action: an action that fails is logged
once and kept in ``failures``. Code that was asked to use the action's result raises from there.
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
"""What has failed in this process so far, one sentence for each action."""


def attempt(action: Action) -> None:
    """Call ``action``; an exception is logged at ERROR with its traceback and kept in ``failures``."""
    try:
        action()
    except Exception as error:
        reason = f"{action.__module__}.{action.__qualname__} failed: {type(error).__name__}: {error}"
        failures.append(reason)
        logger.exception("verl_aer stands aside, veRL runs without it. %s. `verl-aer doctor` says what to do.", reason)


class AfterImport(MetaPathFinder):
    """Finds the awaited modules through the other finders, and acts when they have been executed."""

    def __init__(self) -> None:
        self._awaited: dict[str, list[Action]] = {}

    def add(self, module_name: str, action: Action) -> None:
        """Act after the next import of the module."""
        self._awaited.setdefault(module_name, []).append(action)

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        """The module's spec, with a loader that acts at the end; None for a module that no action waits for."""
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
    """Call ``action`` right after ``module_name`` has been imported; now, if it already is.

    An error that the action raises is no error of that import, see ``attempt``.

    Args:
        module_name: full dotted name. Name a package rather than its submodule if the action imports more of
            the package: then all of it is complete by that time.
        action: called once, without arguments.
    """
    if module_name in sys.modules:
        attempt(action)
        return
    if _after_import not in sys.meta_path:
        sys.meta_path.insert(0, _after_import)
    _after_import.add(module_name, action)
