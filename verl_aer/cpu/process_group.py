"""Use a single backend for the single device of the process group."""

from __future__ import annotations

from inspect import signature

from verl_aer.cpu.errors import expect


def use_one_backend_entry() -> None:
    """Change the default backend to a single entry.

    Symptom: ``ValueError: Duplicate device type cpu in backend string``.

    ``verl.utils.distributed`` requests ``cpu:gloo,<device>:<backend>`` from torch, which names the CPU twice on this
    platform. The function takes the whole string as its parameter ``backend``. We change the default of that parameter
    and not the function, because other modules may already hold a reference to it.
    """
    from verl.utils.distributed import initialize_global_process_group_ray

    parameters = signature(initialize_global_process_group_ray).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    expect(
        list(defaults.items()) == [("timeout_second", None), ("backend", None)],
        "verl.utils.distributed.initialize_global_process_group_ray should have timeout_second=None and "
        f"backend=None, but has {defaults}.",
    )
    initialize_global_process_group_ray.__defaults__ = (None, "cpu:gloo")
