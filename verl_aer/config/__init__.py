"""The node `entropy` of a run's config: its schema, and the presets that Hydra offers."""

PROVIDER = "verl_aer"
"""What Hydra's listings name as the origin of the presets."""
