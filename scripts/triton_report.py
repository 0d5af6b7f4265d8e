"""What the Triton kernels take of a multiprocessor, on every GPU they are for, without any of them.

Records every launch of every operator at sizes that reach each configuration, compiles each kernel
as it would be launched, and writes docs/triton_kernels.md: registers, stack, shared memory. With
--check it writes nothing; both fail when a kernel does not compile or takes more shared memory than
a consumer GPU has. --quick leaves out the variants by dtype, and on all but one GPU of each maker
the configurations for small memories. --only prints what the kernels of one operator take.

What was compiled once is in docs/triton_kernels.json, by a digest of all that goes into it, and is
not compiled again by the same Triton; but for some, which must come out as they are there. The
record is written as it grows: after an interruption, the same command goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # interpreted kernels cannot be compiled

try:
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    import kanerva_ext.triton as kernels
    from kanerva_ext import ops
    from kanerva_ext.triton import _launch
except ModuleNotFoundError as error:
    raise SystemExit(f"triton_report: {error}; pip install torch triton, and kanerva_ext") from None

PAGE = Path(__file__).resolve().parents[1] / "docs/triton_kernels.md"
RECORD = PAGE.with_suffix(".json")
AGAIN = 40  # one in so many of those that are known is compiled again
SAVE = 16  # so many are compiled before the record is written again
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
#: Shared memory of a block on consumer GPUs (sm_86, sm_89, sm_120); AMD's has 64 KiB.
LARGEST_SHARED = {"cuda": 99 * 1024, "hip": 64 * 1024}
POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}


def forget_lines() -> None:
    """Triton's digest of a function has the line where it begins; what moves is not new."""
    for name, module in list(sys.modules.items()):
        if name.startswith(kernels.__name__):
            for function in vars(module).values():
                if isinstance(function, triton.JITFunction):
                    function.starting_line_number, function.hash = 1, None


forget_lines()


@dataclass(frozen=True)
class Variant:
    """A kernel with the types and constants of a launch."""

    name: str
    file: str
    kernel: object
    config: _launch.Config
    signature: tuple
    constants: tuple

    def source(self, target: GPUTarget) -> ASTSource:
        signature, constants = dict(self.signature), dict(self.constants)
        if "PRECISION" in constants:
            constants["PRECISION"] = self.config_of(target).precision
        attrs = {
            path: [["tt.divisibility", 16]]
            for path, kind in leaves(signature.values())
            if kind.startswith("*")
        }
        return ASTSource(self.kernel, signature, constants, attrs)

    def config_of(self, target: GPUTarget) -> _launch.Config:
        return _launch.for_hip(self.config) if target.backend == "hip" else self.config

    @property
    def label(self) -> str:
        """Arithmetic, sizes of tiles, and whatever else is fixed when it is compiled."""
        constants = dict(self.constants)
        if "WORK" not in constants:
            return "moves" if constants.get("MOVES") else ""
        rows = constants.get("M", constants.get("L", constants["N"]))
        words = [f"{constants['WORK']} {rows} x {constants['N']}"]
        if self.config.precision != "ieee":
            words.append(self.config.precision)
        words += [
            k.lower()
            for k in ("SAVE", "LAST", "MOVES", "FORM", "WIDE", "SOLVE", "ITERATE")
            if constants.get(k)
        ]
        episode = dict(self.signature).get("episode")
        if episode is not None and episode.queries != "constexpr":
            words.append("reads")  # a write that reads as well
        return ", ".join(words)


@dataclass(frozen=True)
class Usage:
    """Registers per thread, bytes of stack per thread and of shared memory per block."""

    registers: int
    stack: int
    shared: int

    def text(self) -> str:
        stack = f", stack {self.stack}" if self.stack else ""
        return f"{self.registers}{stack}, {self.shared / 1024:.1f} KiB"


@contextlib.contextmanager
def segments(count: int) -> Iterator[None]:
    """Every sequence of a memory that moves is cut into so many."""
    os.environ["KANERVA_SEGMENTS"] = str(count)
    try:
        yield
    finally:
        del os.environ["KANERVA_SEGMENTS"]


def launches(function: Callable, *args) -> list[tuple]:
    """(kernel, config, args, named) of every launch of an operator, on meta tensors."""
    found = []

    def record(kernel, programs, config, args, named):
        found.append((kernel, config, args, named))

    run, _launch.run = _launch.run, record
    try:
        function(*args)
    finally:
        _launch.run = run
    return found


def leaves(values: Iterable, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Where in nested tuples, and what is there."""
    for i, value in enumerate(values):
        if isinstance(value, tuple):
            yield from leaves(value, (*path, i))
        else:
            yield (*path, i), value


def kind_of(value: Any) -> Any:
    """The type of an argument, as Triton writes it."""
    if value is None:
        return "constexpr"
    if isinstance(value, tuple):
        return type(value)(*map(kind_of, value))
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def variant(kernel, config: _launch.Config, args: tuple, named: dict) -> Variant:
    signature, fixed = {}, {}
    values = dict(zip(kernel.arg_names, args, strict=False)) | named
    for i, parameter in enumerate(kernel.params):
        name, value = parameter.name, values[parameter.name]
        if parameter.is_constexpr:
            signature[name], fixed[name] = "constexpr", value
        else:
            signature[name] = kind_of(value)
            fixed |= {(i, *path[1:]): None for path, x in leaves([value]) if x is None}
    function = kernel.fn
    return Variant(
        function.__name__,
        function.__module__.rpartition(".")[2] + ".py",
        kernel,
        config,
        tuple(signature.items()),
        tuple(fixed.items()),
    )


def calls(slots: int, state: torch.dtype, data: torch.dtype, optional: bool) -> Iterator[tuple]:
    """Every operator and its gradient with arguments of these sizes and dtypes."""
    batch, steps, code = 2, 40, 100

    def empty(*shape, dtype=state):
        return torch.empty(shape, dtype=dtype, device="meta")

    mean, cov, ridge = empty(batch, slots, code), empty(batch, slots, slots), empty(batch)
    weights, values = empty(batch, steps, slots, dtype=data), empty(batch, steps, code, dtype=data)
    noise, out = empty(batch, steps), empty(batch, steps, code)
    read_weights, var = empty(batch, steps, slots), empty(batch, steps)
    mask = empty(batch, steps, dtype=torch.bool) if optional else None
    decay = noise if optional else None
    write = (mean, cov, weights, values, noise, mask, decay, None, None, "auto")
    yield kernels.bayes_write, *write
    yield kernels.bayes_write_backward, mean, cov, ridge, *write, mean, cov
    # A memory that moves: towards a covariance that is given, or the identity.
    towards = None if optional else cov
    write = (mean, cov, weights, values, noise, mask, None, noise, towards, "auto")
    for count in (1, 2):
        with segments(count):
            yield kernels.bayes_write, *write
            yield kernels.bayes_write_backward, mean, cov, ridge, *write, mean, cov
    for narrow_mean in (mean, empty(batch, slots, 13)):  # both systems
        written = values if narrow_mean is mean else empty(batch, steps, 13, dtype=data)
        for num_iters in (1, 2):
            adaptive = (narrow_mean, cov, written, noise, ridge, mask, num_iters)
            yield kernels.adaptive_write, *adaptive
            yield (
                kernels.adaptive_write_backward, narrow_mean, cov, read_weights, noise, ridge,
                *adaptive, read_weights,
            )  # fmt: skip
    # Packed sequences, which take more than single ones.
    items, bounds = batch, None
    if not optional:
        items, bounds = 2 * batch, torch.empty(3, dtype=torch.int64, device="meta")
    states = empty(items, slots, code), empty(items, slots, slots)
    scan = (*states, weights, values, weights, noise, mask, decay, None, None, bounds, 0)
    yield kernels.causal_scan, *scan
    yield kernels.causal_scan_backward, out, var, *states, empty(items), *scan
    towards = None if optional else states[1]
    scan = (*states, weights, values, weights, noise, mask, None, noise, towards, bounds, 0)
    for count in (1, 2):
        with segments(count):
            yield kernels.causal_scan, *scan
            yield kernels.causal_scan_backward, out, var, *states, empty(items), *scan
    for kinds in ((decay, None), (None, noise)):  # of dynamics
        per_step = (weights, values, weights, noise, mask, *kinds)
        step = (x if x is None else x[:, 0] for x in per_step)
        towards = None if optional or kinds[1] is None else cov
        yield kernels.causal_step, mean, cov, *step, towards
    queries = empty(batch, steps, 13, dtype=data)  # of addresses, for the other system
    yield kernels.solve_addresses, empty(batch, slots, 13), queries, ridge
    sizes, dtypes = {"K": slots, "C": code, "T": steps}, {"data": data, "mask": torch.bool}
    for name, operator in ops.OPERATORS.items():
        if name in ("bayes_write", "adaptive_write", "causal_scan", "causal_step"):
            continue
        given, results = [], [empty(batch, *(sizes[d] for d in r.dims)) for r in operator.results]
        for arg in operator.args:
            made = empty(batch, *(sizes[d] for d in arg.dims), dtype=dtypes.get(arg.kind, state))
            given.append(made if optional or not arg.optional else None)
        saved = [results[i] for i in operator.saved_results]
        yield getattr(kernels, name), *given
        yield getattr(kernels, f"{name}_backward"), *results, *given, *saved


def variants(quick: bool, only: str | None = None) -> list[Variant]:
    """Every kernel in every configuration; unless ``quick``, for every kind of argument too.
    ``only``: those of this operator and its gradient."""
    single, double = torch.float32, torch.float64
    cases = [(slots, single, single, False) for slots in (16, 32, 65)]
    if not quick:
        cases += [(65, double, double, True), (32, single, torch.bfloat16, True)]
    found = {}
    for case in cases:
        for function, *args in calls(*case):
            if only not in (None, function.__name__.removesuffix("_backward")):
                continue
            for launch in launches(function, *args):
                one = variant(*launch)
                found[(one.name, one.file, one.config, one.signature, one.constants)] = one
    return list(found.values())


def _largest() -> list[Variant]:
    """The kernels that a large memory of float32 runs."""
    return [
        variant(*launch)
        for function, *args in calls(65, torch.float32, torch.float32, False)
        for launch in launches(function, *args)
    ]


def compile_one(quick: bool, index: int, target: str, only: str | None = None) -> Usage | str:
    """In a process of a pool: compiled kernels cannot be sent there."""
    torch.set_num_threads(1)
    one = _variants(quick, only)[index]
    try:
        compiled = triton.compile(
            one.source(TARGETS[target]),
            target=TARGETS[target],
            options=_launch.options(one.config_of(TARGETS[target])),
        )
    except Exception as error:
        return f"does not compile: {type(error).__name__}: {error}"
    registers, stack = _resources(compiled.asm)
    return Usage(registers, stack, compiled.metadata.shared)


_variants = functools.cache(variants)


def _resources(asm: dict) -> tuple[int, int]:
    """Registers and stack, from the code itself."""
    if "amdgcn" in asm:
        text = asm["amdgcn"]
        names = ("vgpr_count", "private_segment_fixed_size")
        return tuple(int(re.search(rf"\.{name}:\s+(\d+)", text)[1]) for name in names)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(asm["cubin"])
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    return int(re.search(r"REG:(\d+)", text)[1]), int(re.search(r"STACK:(\d+)", text)[1])


def digest(one: Variant, target: str) -> str:
    """Of a kernel's source with all it calls, and of how it is compiled."""
    words = (
        one.source(TARGETS[target]).hash(),
        target,
        sorted(_launch.options(one.config_of(TARGETS[target])).items()),
    )
    return hashlib.sha256(repr(words).encode()).hexdigest()[:16]


def known() -> dict[str, Usage]:
    """By digest, what this Triton has compiled before."""
    if not RECORD.is_file():
        return {}
    try:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
        if record["triton"] != triton.__version__:
            return {}
        return {name: Usage(*map(int, numbers)) for name, numbers in record["compiled"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SystemExit(f"triton_report: {RECORD} is damaged ({error}); remove it") from None


def remember(table: Iterable[tuple[Variant, dict[str, Usage | str]]], forget: bool) -> None:
    """Adds what was compiled to the record; with ``forget``, in place of it."""
    compiled = {} if forget else known()
    for one, row in table:
        usages = {digest(one, t): usage for t, usage in row.items() if isinstance(usage, Usage)}
        compiled |= usages
    lines = (
        f'  "{k}": [{u.registers}, {u.stack}, {u.shared}]' for k, u in sorted(compiled.items())
    )
    head = f'{{\n "triton": "{triton.__version__}",\n "compiled": {{\n'
    unfinished = RECORD.with_suffix(".new")
    unfinished.write_text(head + ",\n".join(lines) + "\n }\n}\n", encoding="utf-8")
    unfinished.replace(RECORD)


def collect(
    quick: bool, targets: list[str], only: str | None = None, keep: bool = False
) -> list[tuple[Variant, dict[str, Usage | str]]]:
    """Every variant with what it takes on every target; with ``keep``, what is new goes into the
    record as soon as it is known."""
    found = _variants(quick, only)
    everywhere = {one.config for one in _largest()}
    jobs = [
        (i, target)
        for i, one in enumerate(found)
        for target in targets
        if not quick or target in ("sm_80", "gfx942") or one.config in everywhere
    ]
    before = known()
    old = {job: before.get(digest(found[job[0]], job[1])) for job in jobs}
    again = [job for job, usage in old.items() if usage is not None][AGAIN // 2 :: AGAIN]
    new = [job for job in jobs if old[job] is None or job in again]
    usages = []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        arguments = zip(*((quick, *job, only) for job in new), strict=True)
        for usage in pool.map(compile_one, *arguments):
            usages.append(usage)
            if keep and len(usages) % SAVE == 0:
                last = zip(new[len(usages) - SAVE :], usages[-SAVE:], strict=False)
                fresh = [(job, usage) for job, usage in last if job not in again]
                remember([(found[i], {t: usage}) for (i, t), usage in fresh], forget=False)
                print(f"{len(usages)} of {len(new)}", flush=True)
    print(f"{len(jobs) - len(new)} of {len(jobs)} kernels are known, {len(new)} were compiled")
    rows: list[dict[str, Usage | str]] = [{} for _ in found]
    for (i, target), usage in {**old, **dict(zip(new, usages, strict=True))}.items():
        if (i, target) in again and usage != old[i, target]:
            usage = f"{usage}, not as in {RECORD.name}: {old[i, target]}"
        rows[i][target] = usage
    return list(zip(found, rows, strict=True))


def problems(table: list[tuple[Variant, dict[str, Usage | str]]]) -> list[str]:
    found = []
    for one, row in table:
        for target, usage in row.items():
            where = f"{one.file}: {one.name} ({one.label}) for {target}"
            if isinstance(usage, str):
                found.append(f"{where}: {usage}")
            elif usage.shared >= LARGEST_SHARED[TARGETS[target].backend]:
                found.append(f"{where} takes {usage.shared} bytes of shared memory")
    return found


def render(table: list[tuple[Variant, dict[str, Usage | str]]]) -> str:
    columns = list(TARGETS)
    lines = [
        "# Triton kernels: registers and memory",
        "",
        f"Made by `python scripts/triton_report.py` with Triton {triton.__version__}: registers",
        "per thread (vector registers on gfx942), bytes of stack per thread where there are any,",
        "and shared memory per block. Arithmetic and tiles: `kanerva_ext/triton/_launch.py`.",
        "",
        f"| file | kernel | arithmetic, tiles | {' | '.join(columns)} |",
        f"|---|---|---|{'---|' * len(columns)}",
    ]
    rows: dict[tuple[str, str, str], dict[str, Usage | str]] = {}
    for one, row in table:
        # Variants by dtype of the arguments differ little: the largest.
        best = rows.setdefault((one.file, one.name, one.label), {})
        for target, usage in row.items():
            old = best.get(target)
            if old is None or isinstance(usage, str) or usage.shared > old.shared:
                best[target] = usage
    for (file, name, label), row in sorted(rows.items()):
        cells = [row[c] if isinstance(row[c], str) else row[c].text() for c in columns]
        lines.append(f"| {file} | `{name}` | {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--quick", action="store_true", help="one variant of each configuration")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this one")
    parser.add_argument("--only", metavar="OPERATOR", help="print its kernels, write nothing")
    options = parser.parse_args(arguments)
    if options.only and not _variants(options.quick, options.only):
        raise SystemExit(f"triton_report: --only must be an operator, got {options.only!r}")
    whole = not (options.check or options.quick or options.target or options.only)
    keep = not (options.check or options.only)
    table = collect(options.quick, options.target or list(TARGETS), options.only, keep)
    if options.only:
        for one, row in table:
            usages = (f"{t}: {u if isinstance(u, str) else u.text()}" for t, u in row.items())
            print(f"{one.file} {one.name} ({one.label}):", "; ".join(usages))
    with contextlib.suppress(BrokenPipeError):
        print(f"{len(table)} variants of kernels on {', '.join(options.target or TARGETS)}")
    if keep:
        remember(table, forget=whole)
    if whole:
        PAGE.write_text(render(table), encoding="utf-8")
        print(PAGE)
    found = problems(table)
    print("\n".join(found), file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
