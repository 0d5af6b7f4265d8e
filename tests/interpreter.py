"""Makes Triton's interpreter bearable for a test suite.

Every call of one ``@triton.jit`` function by another patches all of ``triton.language`` again,
which takes a millisecond. The first patch of each language module holds until the kernel ends.
"""

from __future__ import annotations

import inspect


def patch_language_once() -> None:
    from triton.runtime import interpreter

    patch, tl = interpreter._patch_lang, interpreter.tl
    patched: set[int] = set()

    class Nested:
        def restore(self) -> None:
            pass

    def patch_once(fn):
        modules = {id(v) for v in fn.__globals__.values() if inspect.ismodule(v)}
        modules &= {id(tl), id(tl.core)}
        if modules and modules <= patched:
            return Nested()
        outermost = not patched
        patched.update(modules)
        scope = patch(fn)
        if outermost:
            restore = scope.restore

            def restore_all() -> None:
                patched.clear()
                restore()

            scope.restore = restore_all
        return scope

    interpreter._patch_lang = patch_once
