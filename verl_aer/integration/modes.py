"""The names under which our trainers are registered, and veRL's own trainer mode behind each."""

TRAINER_MODES = {"aer_sync": "sync"}
