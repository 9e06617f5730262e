from __future__ import annotations

import pytest

from tests.mutants import MUTANTS, ROOT, TESTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.fault.strip()[:60]}")
def test_each_fault_has_its_place_and_its_tests(mutant: Mutant):
    path = ROOT / "verl_aer" / mutant.file
    assert path.read_text().count(mutant.line) == 1
    assert mutant.line != mutant.fault
    named = [word for word in TESTS[path.stem] if word.startswith("tests/")]
    assert named
    assert all((ROOT / test).exists() for test in named)


def test_no_fault_is_there_twice():
    assert len(set(MUTANTS)) == len(MUTANTS)
