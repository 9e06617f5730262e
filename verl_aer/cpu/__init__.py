"""veRL's whole stack (Ray, FSDP2, vLLM) on a machine without an accelerator.

:func:`install` is called once in every process that imports veRL. Where an accelerator is present it does
nothing at all; elsewhere it registers a platform, the FSDP2 engine and a vLLM server through veRL's own
registries, and adapts the two places that have no registry. Each adaptation is one function whose docstring
names the symptom it cures.
"""

from __future__ import annotations


def install() -> bool:
    """Make this process a CPU process of veRL, if there is no accelerator.

    Returns:
        True where the CPU platform is active in this process, False where veRL's own platform stays.

    Raises:
        AdaptationError: the installed veRL, vLLM or torchvision is not what the adaptations expect.
    """
    from verl_aer.cpu.detection import cpu_platform_wanted

    if not cpu_platform_wanted():
        return False

    # Imported here and not above: on a machine with an accelerator none of this is even loaded.
    from verl_aer._import_hooks import after_import
    from verl_aer.cpu.packages import provide_vllm_metadata, require_working_torchvision
    from verl_aer.cpu.platform import register_cpu_platform
    from verl_aer.cpu.process_group import use_one_backend_entry
    from verl_aer.cpu.registrations import (
        leave_memory_unpinned,
        load_value_models_with_their_own_attention,
        register_fsdp2_engines,
        register_vllm_replica,
    )

    register_cpu_platform()
    require_working_torchvision()
    provide_vllm_metadata()
    after_import("verl.utils.distributed", use_one_backend_entry)
    after_import("verl.workers.engine.fsdp.transformer_impl", register_fsdp2_engines)
    after_import("verl.workers.engine.fsdp.transformer_impl", leave_memory_unpinned)
    after_import("verl.utils.model", load_value_models_with_their_own_attention)
    after_import("verl.workers.rollout.replica", register_vllm_replica)
    return True


# Last, and on purpose: whichever of our modules is imported first in a process, veRL must be whole before
# that module runs, because importing veRL calls `install` and `install` imports the modules beside this one.
import verl  # noqa: E402, F401
