"""veRL's hooks. Only this folder and ``verl_aer.cpu`` import veRL."""

# Import veRL first. If one of our modules were the first to import it, veRL would load our entry point in the middle
# of that import, when our module is only half-initialized.
import verl  # noqa: F401
