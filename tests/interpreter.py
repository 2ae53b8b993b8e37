"""Triton's interpreter, without work that it does again for every call of a function in a kernel."""

from __future__ import annotations

import functools
from typing import Any

from triton.runtime import interpreter


def replace_language_once() -> None:
    """Let functions that kernels call replace the language, Triton's builtins, only the first time.

    A launch replaces those that kernels see, for as long as it lasts. Those that Triton's own functions see are
    replaced by the first call of such a function, for good. Looking again for what is left takes long.
    """
    replace = functools.cache(interpreter._patch_lang)

    def call(self: interpreter.InterpretedFunction, *arguments: Any, **named: Any) -> Any:
        replace(self.fn)
        return self.rewrite()(*arguments, **named)

    interpreter.InterpretedFunction.__call__ = call
