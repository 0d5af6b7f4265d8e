"""Runs small PTX programs on NumPy arrays: what the interpreter's own tests use."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


def _build():
    spec = importlib.util.spec_from_file_location(
        "ptx_build_interpreter", Path(__file__).with_name("build_interpreter.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class UnsupportedError(Exception):
    """The text is no PTX, or has an instruction that the interpreter does not know."""


class Fault(Exception):
    """The program stopped: an access outside memory, a barrier out of reach, ..."""

    def __init__(self, message: str, findings: list[Finding]):
        super().__init__(message)
        self.findings = findings


@dataclass(frozen=True)
class Finding:
    kind: str
    what: str
    where: str
    times: int


class _How(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("dynamic_shared", ctypes.c_int64),
        ("cooperative", ctypes.c_int32),
        ("checks_races", ctypes.c_int32),
        ("weak_memory", ctypes.c_int32),
        ("early_copies", ctypes.c_int32),
        ("skip_barrier", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
        ("quantum", ctypes.c_int32),
        ("counts", ctypes.c_int32),
        ("cluster", ctypes.c_uint32 * 3),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    found = ctypes.CDLL(str(_build().library()))
    found.ptx_open.restype = found.ptx_error.restype = ctypes.c_void_p
    for name in "ptx_error", "ptx_result", "ptx_counted":
        getattr(found, name).restype = ctypes.c_char_p
    found.ptx_open.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    for name in "ptx_close", "ptx_result", "ptx_counted":
        getattr(found, name).argtypes = [ctypes.c_void_p]
    found.ptx_buffer.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int]
    found.ptx_forget.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    found.ptx_launch.argtypes = [
        ctypes.c_void_p,
        ctypes.c_char_p,
        ctypes.POINTER(_How),
        ctypes.c_char_p,
        ctypes.c_int64,
    ]
    return found


def _three(size: int | Sequence[int]) -> tuple[int, int, int]:
    sizes = (size,) if isinstance(size, int) else tuple(size)
    return (*sizes, *(1,) * (3 - len(sizes)))


class Module:
    """PTX text. Raises UnsupportedError where it is not understood."""

    def __init__(self, text: str, name: str = "test.ptx"):
        self._handle = _library().ptx_open(text.encode(), name.encode())
        if not self._handle:
            raise UnsupportedError(_library().ptx_error().decode())

    def __del__(self):
        if getattr(self, "_handle", None):
            _library().ptx_close(self._handle)

    def counted(self) -> str:
        """The counts of the last launch, as JSON; empty if it was not counted."""
        return _library().ptx_counted(self._handle).decode()

    def launch(
        self,
        kernel: str,
        *arguments,
        grid: int | Sequence[int] = 1,
        block: int | Sequence[int] = 32,
        shared: int = 0,
        unwritten: Sequence[np.ndarray] = (),
        cooperative: bool = False,
        checks_races: bool = True,
        weak_memory: bool = True,
        early_copies: bool = False,
        skip_barrier: int = -1,
        seed: int = 0,
        quantum: int = 0,
        counts: bool = False,
        cluster: int | Sequence[int] = 1,
    ) -> list[Finding]:
        """Runs a kernel; gives what was found wrong. Raises Fault or UnsupportedError.

        Arrays are passed as pointers, NumPy scalars as they are. An array that is also in
        ``unwritten`` must be written before it is read.
        """
        how = _How(
            (ctypes.c_uint32 * 3)(*_three(grid)),
            (ctypes.c_uint32 * 3)(*_three(block)),
            shared,
            cooperative,
            checks_races,
            weak_memory,
            early_copies,
            skip_barrier,
            seed,
            quantum,
            counts,
            (ctypes.c_uint32 * 3)(*_three(cluster)),
        )
        packed = b""
        buffers = []
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                is_new = any(argument is u for u in unwritten)
                buffers.append(argument.ctypes.data)
                _library().ptx_buffer(
                    self._handle, argument.ctypes.data, argument.nbytes, not is_new
                )
                value = struct.pack("<Q", argument.ctypes.data)
            else:
                value = argument.tobytes()
            packed += b"\0" * (-len(packed) % len(value)) + value
        try:
            status = _library().ptx_launch(
                self._handle, kernel.encode(), ctypes.byref(how), packed, len(packed)
            )
        finally:
            for begin in buffers:
                _library().ptx_forget(self._handle, begin)
        error = _library().ptx_error().decode()
        if status == 2:
            raise UnsupportedError(error)
        rows = _library().ptx_result(self._handle).decode().split("\x1e")[:-1]
        found = [Finding(*row.split("\x1f")[:3], int(row.split("\x1f")[3])) for row in rows]
        if status == 1:
            raise Fault(error, found)
        return found
