"""The names under which our trainers are registered, and veRL's own trainer mode behind each."""

TRAINER_MODES = {
    "aer_sync": "sync",
    "aer_colocate_async": "colocate_async",
    "aer_separate_async": "separate_async",
}
