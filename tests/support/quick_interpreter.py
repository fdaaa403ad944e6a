"""Triton's interpreter without what it does over and over: a pytest plugin for processes that interpret kernels.

What a kernel computes is the same to the bit. The interpreter looks through all of `triton.language` for what it is to
replace, at every launch and again at every call of a function of a kernel; builds a table of types for every operation;
and computes for every sum and product of integers whether it overflows, to throw the answer away
(`InterpreterOptions.debug` is False, without which `device_assert` asserts nothing).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from triton.runtime import interpreter


class _NothingToRestore:
    def restore(self) -> None:
        pass


def _patched_once(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Replaces the language that a function sees when it is first seen, and for good: nothing is compiled here."""
    nothing, done = _NothingToRestore(), set[int]()

    def patch_language(function: Any) -> Any:
        of_function = id(function.__globals__)  # no module goes, so none takes another's place
        if of_function not in done:
            patch(function)
            done.add(of_function)
        return nothing

    return patch_language


def _remembered(numpy_type: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A block's type is that of its elements. Neither it nor a pointer's can be hashed."""
    of_scalar = cache(numpy_type)

    def found(kind: Any) -> Any:
        element = kind.element_ty if isinstance(kind, interpreter.tl.block_type) else kind
        return (numpy_type if isinstance(element, interpreter.tl.pointer_type) else of_scalar)(element)

    return found


builder = interpreter.interpreter_builder
if not builder.options.debug:
    builder.options = replace(builder.options, sanitize_overflow=False)
interpreter._patch_lang = _patched_once(interpreter._patch_lang)
interpreter._get_np_dtype = _remembered(interpreter._get_np_dtype)
