"""Small PTX programs for the tests of the interpreter in tools/ptx."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from checkout import ROOT

TOOL = ROOT / "tools/ptx/interpreter.py"

if not TOOL.is_file():
    pytest.skip("needs the source tree, which is not here", allow_module_level=True)


def _load(path: Path, name: str):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        before = list(sys.path)
        spec.loader.exec_module(sys.modules[name])
        sys.path[:] = before  # the tests must not find the checkout's package
    return sys.modules[name]


ptx = _load(TOOL, "ptx_interpreter")

HEADER = ".version 8.0\n.target {target}\n.address_size 64\n"
REGISTERS = """
  .reg .pred %p<16>; .reg .b16 %h<32>; .reg .b32 %r<64>; .reg .b64 %d<64>;
  .reg .f32 %f<64>; .reg .f64 %g<32>;
"""

#: Type -> NumPy's, prefix of its registers.
TYPES = {
    **dict.fromkeys(("b16", "u16", "f16", "bf16"), (np.uint16, "h")),
    "s16": (np.int16, "h"),
    **dict.fromkeys(("b32", "u32", "tf32"), (np.uint32, "r")),
    "s32": (np.int32, "r"),
    **dict.fromkeys(("b64", "u64"), (np.uint64, "d")),
    "s64": (np.int64, "d"),
    "f32": (np.float32, "f"),
    "f64": (np.float64, "g"),
}


def kernel(body: str, parameters: str = "u64", name: str = "k", before: str = "") -> str:
    """A kernel with parameters p0, p1, ... of these types, which are in %d0, %d1, ... if they are
    u64. %r0 is the thread, %d63 its place in an array of four-byte words."""
    types = parameters.split()
    declared = ", ".join(f".param .{t} {name}_p{k}" for k, t in enumerate(types))
    loads = "".join(
        f"  ld.param.u64 %d{k}, [{name}_p{k}];\n" for k, t in enumerate(types) if t == "u64"
    )
    start = f"{REGISTERS}\n  mov.u32 %r0, %tid.x;\n  mul.wide.u32 %d63, %r0, 4;\n"
    return f"{before}.visible .entry {name}({declared})\n{{{start}{loads}{body}\n  ret;\n}}\n"


def module(*parts: str, target: str = "sm_80"):
    return ptx.Module(HEADER.format(target=target) + "\n".join(parts))


def run(body: str, *arguments, parameters: str = "", before: str = "", **how):
    """Runs a kernel with this body on arrays; gives what was found wrong."""
    types = parameters or " ".join("u64" for _ in arguments)
    return module(kernel(body, types, before=before)).launch("k", *arguments, **how)


def compute(instruction: str, types: str, *inputs, before: str = "") -> np.ndarray:
    """What ``instruction`` gives, lane by lane: its first type is the result's, then those of the
    inputs, which are called {a}, {b}, ... in it; the result is {x}. A type may be pred: 0 or 1."""
    result, *given = types.split()
    count = max(np.size(values) for values in inputs)
    body, names, arrays = "", {}, []
    for k, (kind, values) in enumerate(zip(given, inputs, strict=True)):
        letter = "abcdefgh"[k]
        dtype, prefix = (np.uint32, "r") if kind == "pred" else TYPES[kind]
        array = np.ascontiguousarray(np.broadcast_to(np.asarray(values).astype(dtype), count))
        arrays.append(array)
        register = f"%{prefix}{20 + k}"
        width = array.itemsize
        body += f"  mul.wide.u32 %d40, %r0, {width};\n  add.u64 %d40, %d40, %d{k + 1};\n"
        body += f"  ld.global.b{8 * width} {register}, [%d40];\n"
        if kind == "pred":
            body += f"  setp.ne.u32 %p{k + 1}, {register}, 0;\n"
            register = f"%p{k + 1}"
        names[letter] = register
    dtype, prefix = (np.uint32, "r") if result == "pred" else TYPES[result]
    out = np.full(count, 77, dtype)
    target = "%p0" if result == "pred" else f"%{prefix}19"
    body += "  " + instruction.format(x=target, **names) + "\n"
    if result == "pred":
        body += "  selp.u32 %r19, 1, 0, %p0;\n"
        target = "%r19"
    body += f"  mul.wide.u32 %d40, %r0, {out.itemsize};\n  add.u64 %d40, %d40, %d0;\n"
    body += f"  st.global.b{8 * out.itemsize} [%d40], {target};\n"
    found = run(body, out, *arrays, block=count, before=before)
    assert not found, found
    return out


def kinds(findings) -> set[str]:
    return {finding.kind for finding in findings}


def stops(body: str, *arguments, **how):
    """The kernel must stop; gives the fault."""
    with pytest.raises(ptx.Fault) as caught:
        run(body, *arguments, **how)
    return caught.value
