"""Train AER on Countdown and show a table and a figure: the command behind `make quickstart`.

It has fewer steps than `compare.sh`: enough to see the entropy fall to its target and stay there.
"""

from __future__ import annotations

import sys

from examples.countdown import train

STEPS = 70
TEST_SAMPLES = 4
"""Of each held-out problem, before and after: half of the comparison's, as validation takes a third of the time."""


def main() -> int:
    samples = f"actor_rollout_ref.rollout.val_kwargs.n={TEST_SAMPLES}"
    return train.main(["--entropy", "aer", "--steps", str(STEPS), "--name", "quickstart", "--", samples])


if __name__ == "__main__":
    sys.exit(main())
