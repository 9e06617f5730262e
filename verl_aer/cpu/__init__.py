"""Run veRL's whole stack (Ray, FSDP2, vLLM) on a machine without an accelerator.

Every process that imports veRL calls :func:`install` once. With an accelerator it does nothing. Otherwise it registers
a platform, the FSDP2 engine and a vLLM server in veRL's registries, and adapts the places without a registry. Each
adaptation is one function whose docstring names the symptom that it fixes.
"""

from __future__ import annotations


def install() -> bool:
    """Set up the CPU platform in this process if there is no accelerator.

    Returns:
        True if the CPU platform is active in this process, False if veRL's own platform stays.

    Raises:
        AdaptationError: the installed veRL, vLLM or torchvision differs from what the adaptations expect.
    """
    from verl_aer.cpu.detection import cpu_platform_wanted

    if not cpu_platform_wanted():
        return False

    # Imported here, so that a machine with an accelerator does not load these modules.
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


# This import must be last. Importing veRL calls `install`, which imports the other modules of this folder. So veRL must
# be imported completely before any of them runs, whichever module a process imports first.
import verl  # noqa: E402, F401
