"""The Triton kernels, interpreted on the CPU: `test_kernels.py` again, in a process with the interpreter.

Triton decides on import whether it compiles or interprets kernels, so a process has only one of them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

STATE = ("top", "log_z", "log_zk", "mean_y", "threshold", "cut")
TESTS = Path(__file__).with_name("test_kernels.py")


KEEPS = ["KEEP_ALL", "KEEP_COLUMNS", "KEEP_CLAMPED", "KEEP_NUCLEUS"]


def compiled(keep: str, dtype: str, transposed: bool = False) -> list[dict[str, str | bytes]]:
    """What the compiler makes of the forward and the backward kernel for a GPU that is not here, by its stages.

    transposed: the logits and their gradient, whose column stride then is a number and not 1.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from verl_aer.kernels import triton_rows

    pointers = dict.fromkeys((*STATE[:4], "temperature", "s", "kept_top", "kept_s", "kept_t"), "*fp32")
    pointers |= {"logits": f"*{dtype}", "grad": f"*{dtype}", "labels": "*i64", "wanted": "*i1", "p": "*fp64"}
    pointers |= {"pull": "*fp32", "pull_of_entropy": "*fp32", "threshold": "*fp32", "cut": "*i64"}
    numbers = {"row_stride": "i64", "grad_row_stride": "i64", "vocabulary": "i32", "columns": "i32"}
    bits = {"bf16": 16, "fp16": 20, "fp32": 32}[dtype]
    constants = {"KEEP": getattr(triton_rows, keep).value, "BITS": bits}
    strides = ("column_stride", "grad_column_stride")
    numbers |= dict.fromkeys(strides, "i32") if transposed else {}
    constants |= {} if transposed else dict.fromkeys(strides, 1)
    constants |= {"BLOCK": triton_rows.BLOCK, "CHOICE_BLOCK": triton_rows.CHOICE_BLOCK}
    found = []
    for kernel in (triton_rows._forward_kernel, triton_rows._backward_kernel):
        kinds = {**pointers, **numbers, **dict.fromkeys(constants, "constexpr")}
        source = ASTSource(
            fn=kernel,
            signature={name: kinds[name] for name in kernel.arg_names},
            constexprs={name: value for name, value in constants.items() if name in kernel.arg_names},
        )
        options = {"num_warps": triton_rows.WARPS, "enable_fp_fusion": True}
        found.append(compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm)
    return found


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("keep", KEEPS)
def test_the_kernels_compile_for_a_gpu_that_is_not_here(keep, dtype):
    """The compiler is stricter than the interpreter, and needs no GPU."""
    for stages in compiled(keep, dtype):
        assert stages["cubin"]


@pytest.mark.parametrize("keep", KEEPS)
def test_a_place_in_transposed_logits_is_counted_in_64_bits(keep):
    """Column 151,935 of logits with 14,200 rows is more than 2**31 numbers away from the first."""
    for stages in compiled(keep, "bf16", transposed=True):
        made_by: dict[str, str] = {}
        places = []
        for line in stages["ttir"].splitlines():
            # Of a whole block; a row's first place is a scalar.
            if place := re.search(r"tt\.addptr %\w+, (%\w+) : tensor<\d+x!tt\.ptr<bf16>>", line):
                places.append(made_by[place[1]])
            if made := re.search(r"(%\w+) = (.*)", line):
                made_by[made[1]] = made[2]
        assert places
        # Not multiplied in 32 bits and widened afterwards.
        assert all(re.match(r"arith\.muli .* : tensor<\d+xi64>", place) for place in places), places


def test_the_kernels_pass_what_the_other_backend_passes():
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", str(TESTS)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=TESTS.parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    passed = int(re.search(r"(\d+) passed", run.stdout).group(1))
    assert passed > 100
