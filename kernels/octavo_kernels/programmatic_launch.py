# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Programmatic dependent launch: a kernel's programs come to the device while the kernel before is still at work.

On Hopper and later a kernel may say that the next one can come (`launch_dependents`); whatever room its last programs
leave is then taken by the next kernel's first ones. These fetch what no kernel writes, weights, and only then wait
until the kernel before is complete. So neither the launch nor the first way to memory is waited for.

Two rules keep it right, here and in CUDA graphs. Every program waits, even one with nothing to do: a kernel is then
complete only after all that came before it, and the next one, which waits for this kernel alone, has waited for all.
And before the wait nothing is written, and nothing is read but weights and what stood in memory when the step's last
kernel of the ordinary kind (cuBLAS's, torch's: these wait for all before them) was launched: positions, block tables.
A model looks its embeddings up the ordinary way, after all of these.
"""

from functools import cache

import torch
import triton
import triton.language as tl


@cache
def overlap(device: torch.device, late: bool = False) -> dict[str, int]:
    """Launch options of a kernel with a constexpr OVERLAP that calls `wait_for_inputs`.

    late: the next kernel comes only when this one is nearly through, for kernels that need their processors to
        themselves; they call `let_next_come`.
    """
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"OVERLAP": (2 if late else 1) if able else 0, "launch_pdl": able}


@triton.jit
def wait_for_inputs(OVERLAP: tl.constexpr):
    """Lets the next kernel come, unless late, then waits for the one before. The interpreter has neither."""
    if OVERLAP == 1:
        tl.extra.cuda.gdc_launch_dependents()
    if OVERLAP > 0:
        tl.extra.cuda.gdc_wait()


@triton.jit
def let_next_come(OVERLAP: tl.constexpr):
    """In a late kernel: where the rest takes little."""
    if OVERLAP == 2:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def fetch(ptr, COUNT: tl.constexpr):
    """Has the COUNT elements of 16 bits from each of the pointers on fetched into the L2. COUNT is a multiple of 8.

    Unlike a load it may come before the wait even where a kernel writes: the L2 is where that arrives.
    """
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0;",
        "=r,l,r",
        [ptr.to(tl.int64), tl.full([1], 2 * COUNT, tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
