"""Writes over several processes: measured here, and a model of many GPUs.

    python -m benchmarks.distributed measure --ranks 2        # strong scaling, one thread each
    python -m benchmarks.distributed measure --ranks 2 --weak
    python -m benchmarks.distributed bytes                    # by formula, counted, on the wire
    python -m benchmarks.distributed model                    # to 4,096 ranks: no measurement

A speed is printed of a result that was compared with one process's in the same run. The first rank
also makes the write of one process, `ops.bayes_write` on one thread, between the others' rounds.
Where other programs use the cores, wall times say little: the processor time of the busiest rank
is given too, which is what would be left of it on cores of its own, waits apart.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch
import torch.distributed as dist

from kanerva_ext import distributed, ops

from . import machine
from .compare import tomllib

SHAPE = (1, 65_536, 512, 768)
ROOT = Path(__file__).resolve().parents[1]
CONSTANTS = Path(__file__).with_name("interconnects.toml")
# (B, T, K, C) of the write whose bytes are counted.
COUNTED = (2, 300, 64, 512)
MOST_RANKS = 4096
MAX_ERROR = 1e-4


def numbers_of_a_write(slots: int, code: int) -> int:
    """float64 numbers that a memory's write reduces."""
    return slots * (slots + 1) // 2 + slots * code + 1


def bytes_of_a_write(batch: int, slots: int, code: int) -> int:
    return 8 * batch * numbers_of_a_write(slots, code)


def flops_of_sums(batch: int, steps: int, slots: int, code: int) -> float:
    """Of the sums over steps: half of W'W, and W'Z."""
    return float(batch) * steps * slots * (slots + 2 * code)


def flops_of_finish(batch: int, slots: int, code: int) -> float:
    """Of what every rank does with the sums: factors, the covariance, the mean."""
    return float(batch) * slots * slots * (22 / 3 * slots + 7 * code)


# ---------------------------------------------------------------------------- measured here


def _inputs(shape, seed: int):
    batch, steps, slots, code = shape
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(batch, steps, slots, generator=generator) / math.sqrt(slots)
    values = torch.randn(batch, steps, code, generator=generator)
    return weights, values


def _prior(shape):
    batch, _, slots, code = shape
    return torch.zeros(batch, slots, code), torch.eye(slots).expand(batch, -1, -1).contiguous()


def _timed(call) -> tuple[float, float, object]:
    """Wall and processor seconds of all of this process's threads, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def _rank(options) -> None:
    """One process of `measure`; the first prints JSON."""
    _join(options)
    rank, count = options.rank, options.ranks
    batch, steps, slots, code = options.shape
    if options.weak:
        steps *= count
    shape = (batch, steps, slots, code)
    weights, values = _inputs(shape, 0)
    part = slice(steps * rank // count, steps * (rank + 1) // count)
    whole, (mean, cov) = (weights, values), _prior(shape)
    weights, values = weights[:, part].clone(), values[:, part].clone()
    if rank:
        whole = None
    rows, errors, want = [], [], None
    one = dist.new_group([0])
    for _ in range(options.rounds):
        alone, same = (0.0, 0.0), (0.0, 0.0)
        dist.barrier()
        if rank == 0:
            own = whole if not options.weak else (weights, values)
            *alone, found = _timed(lambda own=own: ops.bayes_write(mean, cov, *own, 1.0))
            *same, _ = _timed(lambda own=own: distributed.write((mean, cov), *own, 1.0, group=one))
            want = want or (found if not options.weak else ops.bayes_write(mean, cov, *whole, 1.0))
        dist.barrier()
        wall, cpu, (state, evidence) = _timed(
            lambda: distributed.write((mean, cov), weights, values, 1.0)
        )
        times = torch.tensor([wall, cpu])
        dist.all_reduce(times, dist.ReduceOp.MAX)
        rows.append([*alone, *same, *times.tolist()])
    if rank == 0:
        got = (*state, evidence)
        errors = [((g - w).abs().max() / w.abs().max()).item() for g, w in zip(got, want)]  # noqa: B905
        if not max(errors) < MAX_ERROR:
            raise SystemExit(f"wrong results: relative errors {errors}")
    latency, rate = _reduction(options.rounds)
    finish = [
        _timed(
            lambda: distributed.write(
                (mean, cov), weights[:, :1], values[:, :1], 1.0, method="information"
            )
        )[:2]
        for _ in range(3)
    ]
    finish = [min(times) for times in zip(*finish, strict=True)]
    _leave(rank, {"rows": rows, "errors": errors, "reduction": [latency, rate, finish]})


def _count(options) -> None:
    """One process of `count_bytes`; the first prints JSON."""
    _join(options)
    weights, values = _inputs(COUNTED, 0)

    def received() -> int:
        """Bytes on the loopback interface so far."""
        rows = Path("/proc/net/dev").read_text().splitlines()
        return next(int(row.split()[9]) for row in rows if row.split()[0] == "lo:")

    def write() -> None:
        distributed.write(_prior(COUNTED), weights, values, 1.0, method="information")

    write()
    seen = []
    for _ in range(7):
        dist.barrier()
        before = received()
        with distributed.count_bytes() as sent:
            write()
        dist.barrier()
        seen.append(received() - before)
    _leave(options.rank, [sent, seen])


def _join(options) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(options.store, options.ranks)
    timeout = datetime.timedelta(seconds=600)
    dist.init_process_group(
        "gloo", store=store, rank=options.rank, world_size=options.ranks, timeout=timeout
    )


def _leave(rank: int, found) -> NoReturn:
    if rank == 0:
        print(json.dumps(found), flush=True)
    dist.barrier()
    os._exit(0)  # joining gloo's threads can hang


def _reduction(rounds: int) -> tuple[float, float]:
    """Seconds of an all-reduce of nothing, and its bytes a second, here."""
    times = []
    for numbers in (1, 2**19):
        tensor = torch.zeros(numbers, dtype=torch.float64)
        dist.barrier()
        times.append(min(_timed(lambda t=tensor: dist.all_reduce(t))[0] for _ in range(rounds)))
    return times[0], 2**22 / max(times[1] - times[0], 1e-9)


def _launch(options, what: str):
    """What the first of the ranks prints. Started by name: `-c` would find the checkout first."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.distributed", what]
        command += ["--store", f"{folder}/store", "--shape", ",".join(map(str, options.shape))]
        command += ["--ranks", str(options.ranks), "--rounds", str(options.rounds)]
        command += ["--weak"] if options.weak else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        children = [
            subprocess.Popen(
                [*command, "--rank", str(rank)],
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                cwd=ROOT,
            )
            for rank in range(options.ranks)
        ]
        outputs = [child.communicate()[0] for child in children]
        if any(child.returncode for child in children):
            raise SystemExit("a process failed; its error is above")
        return json.loads(outputs[0].splitlines()[-1])


def measure(options) -> None:
    with machine.OtherLoad() as load:
        found = _launch(options, "rank")
    shape, count = "x".join(map(str, options.shape)), options.ranks
    kind = "weak" if options.weak else "strong"
    print(f"{kind} scaling, {shape}, {count} ranks of one thread, {options.rounds} rounds")
    print(f"relative errors of mean, cov, evidence: {[f'{e:.0e}' for e in found['errors']]}")
    columns = list(zip(*found["rows"], strict=True))
    names = ["bayes_write", "distributed.write on one"]
    names = [f"{name}, {what}" for name in names for what in ("wall", "cpu")]
    names += ["ranks, wall", "busiest rank, cpu"]
    for name, times in zip(names, columns, strict=True):
        print(f"  {name:30} least {min(times):.3f} s, all {[f'{t:.2f}' for t in times]}")
    least = [min(times) for times in columns]
    *_, together, busiest = least
    scale = count if options.weak else 1
    for name, wall, cpu in (("bayes_write", *least[:2]), ("distributed.write", *least[2:4])):
        print(
            f"  times as fast as {name} in one process: {scale * wall / together:.2f} by wall "
            f"time, {scale * cpu / busiest:.2f} by processor time"
        )
    latency, rate, (_, finish) = found["reduction"]
    # By processor time, which others do not take: the sums of a share, and what all ranks repeat.
    share = 1 if options.weak else 1 / count
    model = (least[3] - finish) * share + finish
    print(
        f"  the model's, by processor time: sums {(least[3] - finish) * share:.3f} s, a write of "
        f"one step {finish:.3f} s, together {model:.3f} s; measured {busiest:.3f} s"
    )
    print(f"  an all-reduce here: {latency * 1e6:.0f} us and {rate / 1e9:.2f} GB/s")
    print(f"  other programs kept {load.cores} cores busy")


def count_bytes(options) -> None:
    """In one process of two: by formula, as counted, and on the loopback interface."""
    sent, seen = _launch(options, "count")
    batch, _, slots, code = COUNTED
    formula = bytes_of_a_write(batch, slots, code)
    wire = 2 * (options.ranks - 1) * formula
    print(f"write of (B, K, C) = ({batch}, {slots}, {code}) over {options.ranks} ranks")
    print(f"  all-reduced by formula {formula:,} bytes, counted {sent['all_reduce']:,}")
    print(f"  beside it, once a call: {sent.get('handshake', 0)} bytes of a handshake per rank")
    print(f"  sent by all ranks, of a ring: {wire:,} bytes by formula, "
          f"on the loopback interface at least {min(seen):,}")  # fmt: skip


# ---------------------------------------------------------------------------- the model


class Point(NamedTuple):
    """Seconds of a write on so many ranks, by the model."""

    ranks: int
    sums: float
    reduction: float
    finish: float
    protocol: str

    @property
    def seconds(self) -> float:
        return self.sums + self.reduction + self.finish


def reduction_seconds(nbytes: float, ranks: int, constants: dict) -> tuple[float, str]:
    """Of an all-reduce, by the protocol that is fastest for its size."""
    if ranks == 1:
        return 0.0, "-"
    per_node = min(ranks, constants["nvlink"]["ranks_per_node"])
    nodes = math.ceil(ranks / per_node)
    inside = constants["nvlink"]["bytes_per_second"]
    rate = inside if nodes == 1 else min(inside, constants["infiniband"]["bytes_per_second"])
    found = {}
    for name in ("ring_simple", "ring_low_latency", "tree_simple", "tree_low_latency"):
        c = constants[name]
        if name.startswith("ring"):
            steps, across = 2 * (ranks - 1), 2 * (nodes - 1)
            wait = c["base"] + (steps - across) * c["nvlink"] + across * c["network"]
            sent = 2 * (ranks - 1) / ranks * nbytes
        else:
            hops = (per_node - 1) * c["nvlink"] + math.log2(nodes) * c["network"]
            wait, sent = c["base"] + 2 * hops, 2 * nbytes
        found[name] = wait + sent / (rate * c["share"])
    best = min(found, key=found.__getitem__)
    return found[best], best


def simulate(shape, ranks: int, constants: dict, weak: bool = False) -> Point:
    batch, steps, slots, code = shape
    gpu = constants["gpu"]
    share = steps if weak else steps / ranks
    sums = flops_of_sums(batch, 1, slots, code) * share / gpu["flops_per_second"]
    rate = gpu["flops_per_second"] * gpu["small_share"]
    finish = flops_of_finish(batch, slots, code) / rate
    reduction, protocol = reduction_seconds(bytes_of_a_write(batch, slots, code), ranks, constants)
    return Point(ranks, sums, reduction, finish, protocol)


def model(options) -> None:
    constants = tomllib.loads(CONSTANTS.read_text())
    print("A MODEL, not a measurement: constants of benchmarks/interconnects.toml, peak rates,")
    print("no overlap of the reduction with the sums. Milliseconds of one write.")
    large = (*options.shape[:1], 2**30, *options.shape[2:])
    for shape, weak in ((options.shape, False), (large, False), (options.shape, True)):
        what = "T on each rank" if weak else "T in all"
        print(f"\n(B, T, K, C) = {shape}, {what}; efficiency: of ideal")
        print("  ranks      sums reduction    finish     total efficiency  protocol")
        first = None
        ranks = 1
        while ranks <= MOST_RANKS:
            p = simulate(shape, ranks, constants, weak)
            first = first or p.seconds
            efficiency = first / p.seconds / (1 if weak else ranks)
            print(
                f"  {ranks:5d} {p.sums * 1e3:9.3f} {p.reduction * 1e3:9.3f} "
                f"{p.finish * 1e3:9.3f} {p.seconds * 1e3:9.3f} {efficiency:10.1%}  {p.protocol}"
            )
            ranks *= 2 if ranks < 8 else 4 if ranks < 2048 else 2


def _shape(text: str) -> tuple[int, ...]:
    shape = tuple(int(x) for x in text.split(","))
    if len(shape) != 4 or min(shape) < 1:
        raise argparse.ArgumentTypeError(f"must be B,T,K,C, each at least 1, got {text}")
    return shape


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distributed", description=__doc__)
    commands = {"measure": measure, "bytes": count_bytes, "model": model}
    ranks = {"rank": _rank, "count": _count}  # one process of measure, of bytes
    parser.add_argument("what", choices=[*commands, *ranks], metavar="|".join(commands))
    parser.add_argument("--shape", type=_shape, default=SHAPE, help="B,T,K,C")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weak", action="store_true", help="T on each rank, not in all")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    (commands | ranks)[options.what](options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
