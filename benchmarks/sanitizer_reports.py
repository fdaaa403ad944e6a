"""What racecheck reports, and which of it is the tool's own.

Where a kernel divides its warps (`gl.warp_specialize`), Triton hands the warps their parts through shared memory: the
first four write what each is to do and with what arguments, come to barrier 1 of the whole program, the others come to
it, read, come to it again and begin; at the end the same once more, with the word to leave. Writes and reads lie on
both sides of a `barrier.sync 1` that all threads take part in, each at its own place in the code. racecheck reports
them all the same, in any such kernel. It counts them to the lines of the kernel's `def` and of the statement that
divides the warps, in which a kernel of ours does nothing with shared memory itself.

So reports are left out whose every access is at such a line, and only if racecheck makes such a report of
`racecheck_controls.apart_kernel`, too, whose groups of warps share nothing. Nothing else may be reported of that one;
and of `racing_kernel` the race must be. What the copy engine and the matrix units do with shared memory racecheck does
not follow, nor an mbarrier at which one thread arrives for others (a kernel that shares by one is reported). What
orders these is in the compiled code, and a test holds it for the copies (`tests/kernels/triton_kernels/compiled.py`).
"""

import ast
import inspect
import re
import textwrap
from typing import Any, Final, NamedTuple

from racecheck_controls import apart_kernel, racing_kernel

from octavo_kernels.hopper_kernel import hopper_kernel
from octavo_kernels.hopper_linear_kernel import hopper_linear_kernel

DIVIDED: Final[dict[str, Any]] = {
    kernel.fn.__name__: kernel for kernel in (hopper_kernel, hopper_linear_kernel, apart_kernel, racing_kernel)
}
_ACCESS: Final = re.compile(r"(?:Read|Write) access at (\w+)\+0x[0-9a-f]+(?: in \S+?:(\d+))?")
_SUMMARY: Final = re.compile(r"RACECHECK SUMMARY: (\d+) hazards? displayed \((\d+) errors?, (\d+) warnings?\)")


class Race(NamedTuple):
    """A report: the kernel, the lines of its accesses (None: not said), and as it was printed."""

    kernel: str
    lines: frozenset[int | None]
    text: str


def parse(output: str) -> list[Race]:
    """All reports. Raises ValueError if there is no summary, or it counts others."""
    found = []
    for text in re.split(r"^=+ (?:Error|Warning): Race reported between ", output, flags=re.MULTILINE)[1:]:
        told = text.split("\n========= \n")[0]
        accesses = _ACCESS.findall(told)
        if not accesses:
            raise ValueError(f"not understood: {told[:300]}")
        lines = frozenset(int(line) if line else None for _, line in accesses)
        found.append(Race(accesses[0][0], lines, " ".join(told.replace("=========", "").split())))
    summary = _SUMMARY.search(output)
    if summary is None or int(summary[1]) != len(found):
        raise ValueError(f"{len(found)} reports, but {summary[0] if summary else 'no summary'}: {output[-600:]}")
    return found


def dispatch_lines(kernel: Any) -> frozenset[int]:
    """Of the kernel's `def`, and of the statements in it that divide the warps."""
    lines, first = inspect.getsourcelines(kernel.fn)
    function = ast.parse(textwrap.dedent("".join(lines))).body[0]
    if not isinstance(function, ast.FunctionDef):
        raise TypeError(f"{kernel} is no function")
    dividing = [each.lineno for each in function.body if "warp_specialize" in ast.dump(each)]
    return frozenset(first - 1 + line for line in (function.lineno, *dividing))


def races(output: str) -> list[str]:
    """What is wrong by racecheck's output: races, or controls that it does not tell apart."""
    try:
        reports = parse(output)
    except ValueError as error:
        return [str(error)]
    is_dispatch = {name: dispatch_lines(kernel) for name, kernel in DIVIDED.items()}
    others = [race for race in reports if not race.lines <= is_dispatch.get(race.kernel, frozenset())]
    if len(others) < len(reports) and not any(race.kernel == "apart_kernel" for race in reports):
        others = reports  # the tool has learnt it
    if not any(race.kernel == "racing_kernel" for race in others):
        return ["the control with a race is not reported", *(race.text for race in others)]
    found = [race.text for race in others if race.kernel != "racing_kernel"]
    print(f"    {len(reports)} reports, of which {len(reports) - len(others)} of how Triton divides warps", flush=True)
    return found
