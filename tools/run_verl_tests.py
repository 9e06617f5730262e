"""Run veRL's tests that need no accelerator, once without this package's plug-in and once with it.

    make verl-tests VERL_TESTS=path/to/verl/tests

The tests come from a clone of veRL at the installed version and run with the installed veRL. The output lists every
test whose outcome differs, and every process of the run with the plug-in that imported veRL without it. The exit code
is 1 if a test passed only without the plug-in, or if the plug-in was not active in some process, and 2 if there are no
such tests. A test that fails in both runs, because it needs a network, a GPU or a data set, is not a difference. On a
machine without a GPU some tests pass only with the plug-in, because it lets veRL find vLLM's CPU build.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from verl_aer._processes import ProcessTree

PLUGINS = {"without": "none", "with": "auto"}
"""Values of VERL_USE_EXTERNAL_PLUGINS."""

SECONDS_PER_FILE = 240
"""A test that waits for more CPUs than there are would wait forever."""

TESTS = ("*_on_cpu.py", "models/test_engine.py")
"""Below the folder of tests. The second holds those of veRL's engines in the layout of its older trainers, which need a
GPU and models: on other machines they fail in both runs."""

WITNESS = """
import os, sys
from importlib.machinery import PathFinder

class Witness:
    # Notes, once veRL has been imported, whether that import has loaded the plug-in.
    def find_spec(self, fullname, path=None, target=None):
        if fullname != "verl":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            def execute_and_note(module):
                execute(module)
                found = "active" if "verl_aer.integration.plugin" in sys.modules else "absent"
                with open(os.path.join({folder!r}, str(os.getpid())), "w") as note:
                    note.write(found + " " + " ".join(sys.argv))
            spec.loader.exec_module = execute_and_note
        return spec

sys.meta_path.insert(0, Witness())
"""
"""``sitecustomize.py`` of every Python process of a test, Ray's workers included."""


def files_below(tests: Path) -> list[Path]:
    return sorted({file for pattern in TESTS for file in tests.rglob(pattern)})


def outcomes(tests: Path, plugins: str, witness: Path) -> dict[str, str]:
    """Outcome of each test, by its name; a file that cannot be collected or does not end counts as one test."""
    found: dict[str, str] = {}
    files = files_below(tests)
    for number, file in enumerate(files, start=1):
        of_file = outcomes_of_file(file, tests.parent, plugins, witness)
        found |= of_file
        name = file.relative_to(tests.parent)
        print(f"{number}/{len(files)} plug-ins {plugins}: {name}: {dict(Counter(of_file.values()))}", flush=True)
    return found


def outcomes_of_file(file: Path, root: Path, plugins: str, witness: Path) -> dict[str, str]:
    """A process for each file: none of them finds what another has left, such as a Ray cluster."""
    name, report = str(file.relative_to(root)), root / "report.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", name, "-q", "-p", "no:cacheprovider", "--asyncio-mode=auto"]
    python_path = os.pathsep.join(filter(None, [str(witness), os.environ.get("PYTHONPATH")]))
    environment = {
        **os.environ,
        "VERL_USE_EXTERNAL_PLUGINS": plugins,
        "TORCHINDUCTOR_DISABLE": "1",
        "PYTHONPATH": python_path,
    }
    with (root / "log").open("ab") as log:
        process = subprocess.Popen(
            [*command, f"--junitxml={report}"],
            cwd=root,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        tree = ProcessTree(process)
        try:
            ended = tree.wait_until_gone(SECONDS_PER_FILE)
        finally:
            tree.end()
    if not ended or not report.is_file():
        return {name: "no end" if not ended else "no report"}
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
        found[f"{case.get('classname')}::{case.get('name')}"] = min(kinds, default="passed")
    return found


def write_witness(folder: Path) -> Path:
    """A folder for PYTHONPATH, whose ``notes`` hold a file for each process that has imported veRL."""
    (folder / "notes").mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(WITNESS.replace("{folder!r}", repr(str(folder / "notes"))))
    return folder


def processes(witness: Path) -> dict[str, list[str]]:
    """The command lines of processes that imported veRL, by what they found: the plug-in ``active`` or ``absent``."""
    found: dict[str, list[str]] = {"active": [], "absent": []}
    for note in sorted((witness / "notes").iterdir()):
        state, _, command = note.read_text().partition(" ")
        found[state].append(command)
    return found


def main(source: str) -> int:
    if not files_below(Path(source)):
        print(f"{source}: no *_on_cpu.py below it; give the folder `tests` of a clone of veRL", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        # A copy: beside the original lies another veRL, which would be imported in place of the installed one.
        tests = Path(shutil.copytree(source, Path(folder) / "tests"))
        # The folder may lie inside this project, whose settings are not for them.
        (Path(folder) / "pytest.ini").write_text("[pytest]\n")
        witnesses = {label: write_witness(Path(folder) / f"witness_{label}") for label in PLUGINS}
        found = {label: outcomes(tests, plugins, witnesses[label]) for label, plugins in PLUGINS.items()}
        seen = {label: processes(witness) for label, witness in witnesses.items()}
    for label, result in found.items():
        print(f"{label} the plug-in: {dict(Counter(result.values()))}")
    names = sorted(found["without"].keys() | found["with"].keys())
    different = [name for name in names if found["without"].get(name) != found["with"].get(name)]
    for name in different:
        print(f"  {name}: {found['without'].get(name)} without, {found['with'].get(name)} with")
    worse = [name for name in different if found["without"].get(name) == "passed"]
    print(f"{len(different)} of {len(names)} tests differ; {len(worse)} pass only without the plug-in")
    active, absent = (seen["with"][state] for state in ("active", "absent"))
    print(f"the plug-in was active in {len(active)} of {len(active) + len(absent)} processes that imported veRL")
    for command in absent:
        print(f"  not in {command}")
    stray = seen["without"]["active"]
    print(f"in the run without it, it was active in {len(stray)} of {len(stray) + len(seen['without']['absent'])}")
    return bool(worse or absent or stray or not active)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
