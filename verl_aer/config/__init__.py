"""The config of the entropy control: the schema, and the YAML presets that Hydra finds as pkg://verl_aer.config."""
