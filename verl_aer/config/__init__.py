"""The config of the entropy control: its schema, and the presets that Hydra finds."""
