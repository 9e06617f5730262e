"""The only place, beside ``verl_aer.cpu``, that imports veRL."""

# veRL is imported first so that its plug-in loader never finds one of our modules half-initialized: were ours
# the first module of the process to import veRL, veRL would load our entry point in the middle of that import.
import verl  # noqa: F401
