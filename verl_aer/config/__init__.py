"""The `entropy` node of a run's config: its schema, and its presets for Hydra."""

PROVIDER = "verl_aer"
"""Origin of the presets in Hydra's listings."""
