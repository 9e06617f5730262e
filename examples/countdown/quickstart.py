"""What `make quickstart` runs: AER on Countdown, from nothing to a table and a figure.

Fewer steps than the comparison of `compare.sh`: enough to see entropy fall to its target and stay there.
"""

from __future__ import annotations

import sys

from examples.countdown import train

STEPS = 70


def main() -> int:
    return train.main(["--entropy", "aer", "--steps", str(STEPS), "--name", "quickstart"])


if __name__ == "__main__":
    sys.exit(main())
