"""Run the command as `python -m verl_aer.cli`."""

import sys

from verl_aer.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
