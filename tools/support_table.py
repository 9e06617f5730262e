"""Write docs/algorithms.md: the settings of veRL with which tests of the entropy control passed.

    make support-table

It runs the tests of veRL's modes, estimators and losses, and lists each with its outcome.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from verl_aer._files import write_text_atomically
from verl_aer._tables import Table, as_markdown

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "algorithms.md"

KINDS = {
    "test_an_estimator_that_is_let_through_runs_on_what_the_trainer_fetches": "advantage estimator",
    "test_an_estimator_that_is_refused_would_fail": "advantage estimator",
    "test_the_entropy_term_is_the_same_beside_every_policy_loss": "policy loss",
    "test_importance_weights_move_the_policy_loss_and_not_the_entropy_term": "rollout correction: importance weights",
    "test_the_controlled_entropy_is_read_before_rejection_cuts_the_mask": "rollout correction: rejection",
    "test_bypass_mode_controls_the_workers_own_entropy": "rollout correction: bypass mode",
    "test_masked_tool_tokens_neither_count_nor_get_a_bonus": "multi-turn, tool tokens masked",
    "test_kl_loss_stays_verls_own": "KL loss against a reference policy",
    "test_every_mode_keeps_verls_own_switches_under_our_name": "trainer mode",
    "test_gradients_do_not_depend_on_the_cut": "training engine, equal to the whole batch on one rank",
    "test_every_engine_calls_the_loss_by_the_same_three_names": "contract of Megatron, VeOmni, TorchTitan, Automodel",
    "test_killed_run_resumes_bit_for_bit_and_leaves_nothing_behind": "real run: sync, two ranks, save, kill, resume",
    "test_colocate_async_with_two_ranks_and_filtered_groups": "real run: colocate_async, two ranks, DAPO's filtering",
    "test_separate_async_with_local_updates_a_critic_and_skywork": "real run: separate_async, local updates, critic",
    "test_sync_with_lora_a_reference_rollout_correction_and_aent": "real run: sync, LoRA, KL loss, correction",
}
"""What each test is about; its parameter, if it has one, is the name."""

REFUSED = "test_an_estimator_that_is_refused_would_fail"

HEADER = """# Support table

`make support-table` writes this page from the tests that it runs; each row is one test. *works*: the test passed.
*refused*: veRL 0.9.1 fails there without this package too. The checks before a run say so, and a test shows that it
fails.

"""


def rows(report: Path) -> list[list[str]]:
    """One row of the table for each test case of a JUnit report."""
    found = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        test, _, parameter = case.attrib["name"].partition("[")
        if test not in KINDS:
            continue
        failed = any(child.tag in ("failure", "error", "skipped") for child in case)
        outcome = "**fails**" if failed else "refused" if test == REFUSED else "works"
        name = parameter.rstrip("]")
        found.append([KINDS[test], f"`{name}`" if name else "", outcome, f"`{test}`"])
    return sorted(found)


def listed(page: str, kind: str) -> set[str]:
    """The names of one kind on the page."""
    return set(re.findall(rf"^\| {re.escape(kind)} \| `([^`]*)` \|", page, flags=re.MULTILINE))


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        chosen = " or ".join(KINDS)
        command = [sys.executable, "-m", "pytest", "-q", "-k", chosen, f"--junitxml={report}", "tests"]
        done = subprocess.run(command, cwd=ROOT, check=False)
        write_text_atomically(PAGE, HEADER + as_markdown(Table("tests", ["what", "name", "", "test"], rows(report))))
    print(f"wrote {PAGE.relative_to(ROOT)}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
