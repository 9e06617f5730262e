"""The methods of entropy control, one module per paper. Importing the package registers all of them."""

# ruff: noqa: F401
from verl_aer.methods import (
    aent,
    aer,
    ares,
    baselines,
    ceeh,
    entropic,
    epo,
    siren,
    skywork,
    steer,
    verl_builtin,
)
