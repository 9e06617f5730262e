"""Rename one symbol of veRL, for each symbol that this package imports. test_other_verls.py starts it.

    python -m tests.integration.renamed_verl OUT.json

A later veRL may rename anything. Here each name is renamed in the source of all of veRL's modules on import, so that
veRL itself works and only this package does not find the name. Each case is a process forked from one that has imported
veRL's dependencies.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import logging
import multiprocessing
import os
import re
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

PACKAGE = Path(__file__).parents[2] / "verl_aer"
SUFFIX = "RenamedIn010"
STOCK_MODULES = (
    "verl.trainer.main_ppo",
    "verl.trainer.ppo.v1",
    "verl.trainer.ppo.ray_trainer",
    "verl.workers.engine_workers",
    "verl.workers.engine.fsdp.transformer_impl",
    "verl.workers.rollout.replica",
)
"""What a run of veRL's own imports."""


class Symbol(NamedTuple):
    """``from module import name``."""

    module: str
    name: str
    is_module: bool


def imported_symbols() -> list[Symbol]:
    """All names that this package imports from veRL, wherever in a module it does so."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "verl":
                module = importlib.import_module(node.module)
                found |= {
                    Symbol(node.module, alias.name, isinstance(getattr(module, alias.name), ModuleType))
                    for alias in node.names
                }
    return sorted(found)


def renamed(source: str, symbol: Symbol) -> str:
    """Every mention of a function or class; of a module, where it is imported."""
    name, new = symbol.name, symbol.name + SUFFIX
    if not symbol.is_module:
        return re.sub(rf"\b{name}\b", new, source)
    parent = re.escape(symbol.module)
    source = re.sub(rf"\b{parent}\.{name}\b", f"{symbol.module}.{new}", source)
    source = re.sub(rf"(from {parent} import |from \. import ){name}( as \w+)?\b", rf"\1{new} as {name}\2", source)
    source = re.sub(rf" as {name} as ", " as ", source)
    return re.sub(rf"from \.{name} import", f"from .{new} import", source)


class RenamingLoader(SourceFileLoader):
    symbol: Symbol

    def path_stats(self, path: str) -> dict[str, Any]:
        raise OSError("the cached bytecode is of the source as it was")

    def source_to_code(self, data: bytes, path: str, *args: Any, **kwargs: Any) -> Any:
        return super().source_to_code(renamed(data.decode(), self.symbol).encode(), path, *args, **kwargs)


class RenamingFinder(MetaPathFinder):
    def __init__(self, symbol: Symbol) -> None:
        self._symbol = symbol

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if fullname.split(".")[0] != "verl":
            return None
        if self._symbol.is_module and fullname == f"{self._symbol.module}.{self._symbol.name}":
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        spec = PathFinder.find_spec(fullname.removesuffix(SUFFIX), path)
        if spec is None or not isinstance(spec.loader, SourceFileLoader):
            return spec
        if fullname == spec.name and self._symbol.name not in Path(spec.origin).read_text():
            # Nothing to rename: the cached bytecode saves most of the time.
            return spec
        loader = RenamingLoader(fullname, spec.loader.path)
        loader.symbol = self._symbol
        return importlib.util.spec_from_file_location(
            fullname, spec.origin, loader=loader, submodule_search_locations=spec.submodule_search_locations
        )


def forget() -> None:
    """Let the next import of veRL, and of this package, be the first."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("verl", "verl_aer")]:
        del sys.modules[name]
    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__module__ != "verl_aer._import_hooks"]


def attempt(symbol: Symbol) -> dict[str, Any]:
    """What becomes of veRL's imports with the plug-in, and of a run that asks for us."""
    found: dict[str, Any] = {"symbol": f"{symbol.module}.{symbol.name}", "stock": "ok", "asked": ""}
    forget()
    sys.meta_path.insert(0, RenamingFinder(symbol))
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger().addHandler(handler)
    try:
        for module in STOCK_MODULES:
            is_it = symbol.is_module and module == f"{symbol.module}.{symbol.name}"
            importlib.import_module(module + SUFFIX if is_it else module)
        trainers = importlib.import_module("verl.trainer.ppo.v1")
        assert trainers.get_trainer_cls("sync").__module__ == "verl.trainer.ppo.v1.trainer_sync"
    except Exception as error:
        found["stock"] = f"{type(error).__name__}: {error}"
    found["errors"] = [record.getMessage() for record in records if record.name.startswith("verl_aer")]
    try:
        trainers.get_trainer_cls("aer_sync")(config=None)
    except Exception as error:
        found["asked"] = f"{type(error).__name__}: {error}"
    return found


def main(out: str) -> None:
    warnings.simplefilter("ignore")
    os.environ["VERL_USE_EXTERNAL_PLUGINS"] = "verl_aer"
    for module in STOCK_MODULES:
        importlib.import_module(module)
    symbols = imported_symbols()
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        Path(out).write_text(json.dumps(pool.map(attempt, symbols, chunksize=1), indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
