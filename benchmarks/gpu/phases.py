"""What each phase asks, in which order: what is learned first comes first.

Names are "question/operator/shape/mode". Every phase begins with the machine and the build, which
is passed over where this source is installed already; so each is useful alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from . import rows, tools, visit
from .child import LOCK_VARIABLE, child_command
from .processes import Task
from .schedule import Stage, Suite

FOLDERS = visit.ROOT / "kanerva_ext/ops", visit.ROOT / "benchmarks/rivals"


def names_in(folder: Path) -> list[str]:
    """Operators with a file of their name there: those that most depends on, then the others."""
    found = {path.stem for path in FOLDERS[0].glob("[a-z]*.py")}
    found &= {path.stem for path in folder.glob("[a-z]*.py")}
    first = ("bayes_write", "causal_scan", "recall", "adaptive_write")
    return [*(name for name in first if name in found), *sorted(found.difference(first))]


#: Public functions, one for each of ``ops.OPERATORS``, which cannot be asked before the build.
OPERATORS = tuple({"statistics": "to_statistics"}.get(x, x) for x in names_in(FOLDERS[0]))
#: bayes_write and causal_scan with retention, whose kernels are others.
MOVING = ("moving_write", "moving_scan")
WITHOUT_GRADIENT = ("causal_step",)
#: B, T, K, C: partial tiles; the usual size; several tiles of everything.
SMOKE = {"small": (3, 20, 17, 33), "middle": (16, 32, 32, 100), "large": (2, 700, 130, 70)}
#: For launches of one kernel at once: two that ask for more shared memory than the 48 KiB that a
#: kernel has unasked, the second for the most; and a small one.
SIZES = ((2, 40, 64, 200), (2, 40, 96, 130), (2, 9, 8, 5))
#: Of tests/operators, without test_.
RETENTION = (
    "retention",
    *(f"retention_{part}" for part in ("gradients", "segments", "small", "steps", "arguments")),
)
TESTS = (*names_in(FOLDERS[0]), "causal_scan_packed", *RETENTION)
#: Parts of a test file that run beside each other; one of all others.
PARTS = {"bayes_write": 6, "adaptive_write": 6, "causal_scan": 6, "causal_scan_packed": 2,
         "forget": 2, "read": 2, "recall": 2, "retention": 4,
         "retention_gradients": 4}  # fmt: skip
#: Compiling graphs takes minutes and tells nothing of the kernels.
CHOSEN = "not compile and not opcheck and not inductor"
FIRST, MORE = "not slow and not exhaustive", "slow or exhaustive"
CHOSEN_TRITON = f"{CHOSEN} and not gradcheck and not torch_func and not vmap_over_one"
MODES = {"plain": {}, "teams": {"KANERVA_TEAM_WORK": "0"}}

#: Operators that have rivals, and shapes that are timed, B x T x K x C: those of
#: docs/performance.md and some of which a GPU gets full.
TIMED = tuple(names_in(FOLDERS[1]))
TIMED_SHAPES = ("16x32x32x100", "32x64x64x200", "4096x32x32x100", "4x256x256x512")
TIMED_SCANS = ("16x32x32x100", "8x2048x64x64", "128x4096x128x128", "1x8192x64x64")
TIMED_MORE = {"bayes_write": ("1x65536x512x768",), "causal_scan": ("1x65536x64x64",)}
DIRECTIONS = ("forward", "forward_backward")
COUNTED = ("bayes_write", "causal_scan", "recall", "adaptive_write", "memory_kl", "forget")

PATIENCE = 15  # times the limits, in a rehearsal: its machine may have two busy cores

PHASES = ("contact", "tests", "benchmarks", "triton")


class Plan:
    """The tasks of the phases on this machine.

    Attributes:
        at_once: processes beside each other.
        lock: the file by which processes take turns on the GPU.
        rehearsal: whether to go on without a GPU.
    """

    def __init__(
        self, capability: str, source: str, folder: Path, at_once: int, rehearsal: bool = False
    ) -> None:
        self.arch, self.source = visit.arch_of(capability), source
        self.lock, self.at_once, self.rehearsal = folder / "turn", at_once, rehearsal

    def stages(self, phase: str) -> list[Stage]:
        return [*self._beginning(), *getattr(self, f"_{phase}")()]

    def _task(self, key: str, limit: float, kind: str, env=None, **question) -> Task:
        env = {"OMP_NUM_THREADS": str(max(1, visit.cores() // self.at_once)), **(env or {})}
        limit *= PATIENCE if self.rehearsal else 1
        return Task(key, tuple(child_command(kind, **question)), limit, env, answers=True)

    def _beginning(self) -> list[Stage]:
        built = visit.is_built(self.source, self.arch)
        device = self._task("device", 60, "device")
        build = self._task("build", 300, "build", arch=self.arch, source=self.source)
        installed = self._task("installed", 60, "installed", backend="cuda")
        return [
            Stage("device", [device], must=not self.rehearsal, anew=True),
            Stage("build", [] if built else [build], must=True, anew=True),
            Stage("the installed package", [installed], must=True, anew=True),
        ]

    # ---------------------------------------------------------------------------- first contact

    def _contact(self) -> list[Stage]:
        sizes = {"shapes": SIZES}
        pair = {"shapes": SIZES[:2]}
        found = [Stage("smoke", self._smoke("cuda", MODES), self.at_once)]
        found += [
            Stage(
                "graphs, determinism, streams, threads",
                [
                    *self._each("graphs", 60, shape=SMOKE["small"]),
                    *self._each("determinism", 60, shape=SMOKE["large"]),
                    *self._each("capture_sizes", 60, **sizes),
                    *self._each("streams", 60, **pair),
                    *self._each("host_threads", 60, **pair),
                ],
                self.at_once,
            )
        ]
        for tool in tools.SANITIZERS:
            # Memory by itself, so that a tool sees what lies beside it.
            env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            tasks = [
                self._task(f"{tool}/{op}/{mode}", 120, "sanitize", {**env, **more}, tool=tool,
                           operator=op)
                for mode, more in MODES.items()
                for op in (*OPERATORS, *MOVING)
            ]  # fmt: skip
            found.append(Stage(tool, tasks, self.at_once))
        return found

    def _smoke(self, backend: str, modes: dict[str, dict], prefix: str = "smoke") -> list[Task]:
        return [
            self._task(f"{prefix}/{op}/{name}/{mode}", 90, "smoke", env, operator=op, shape=shape,
                       backend=backend)
            for name, shape in SMOKE.items()
            for mode, env in modes.items()
            for op in (*OPERATORS, *MOVING)
        ]  # fmt: skip

    def _each(self, kind: str, limit: float, **question) -> list[Task]:
        return [
            self._task(f"{kind}/{op}/{mode}", limit, kind, env, operator=op, **question)
            for mode, env in MODES.items()
            for op in (*OPERATORS, *MOVING)
        ]

    # ------------------------------------------------------------------------------------ tests

    def _tests(self) -> list[Stage]:
        return [
            Stage("tests", self._suites("cuda", "test"), self.at_once),
            Stage("more tests", self._suites("cuda", "more tests", MORE), self.at_once),
        ]

    def _suites(self, backend: str, prefix: str, marks: str = FIRST) -> list[Suite]:
        found = []
        chosen = CHOSEN if backend == "cuda" else CHOSEN_TRITON
        silence = 60 if backend == "cuda" else 150  # Triton compiles meanwhile
        env = {
            "KANERVA_TEST_DEVICE": "cuda",
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            "OMP_NUM_THREADS": "2",
            **({"KANERVA_BACKEND": "triton"} if backend == "triton" else {}),
        }
        for name in TESTS:
            parts = PARTS.get(name, 1)
            for part in range(parts):
                command = child_command("tests", file=f"tests/operators/test_{name}.py", part=part,
                                        parts=parts, chosen=chosen, marks=marks,
                                        backend=backend)  # fmt: skip
                key = f"{prefix}/{name}/{part + 1} of {parts}"
                limit = silence * (PATIENCE if self.rehearsal else 1)
                found.append(Suite(key, tuple(command), limit, env, silence=True))
        return found

    # ------------------------------------------------------------------------------- benchmarks

    def _timing(self, key: str, limit: float, kind: str, env=None, **question) -> Task:
        threads = str(max(1, 2 * visit.cores() // self.at_once))
        env = {LOCK_VARIABLE: str(self.lock), "OMP_NUM_THREADS": threads, **(env or {})}
        return self._task(key, limit, kind, env, **question)

    def _benchmarks(self) -> list[Stage]:
        few = max(1, min(6, self.at_once // 2))
        return [
            Stage("rates", [self._timing("rates/first", 60, "rates")]),
            Stage("first shapes against PyTorch", self._compare(0), few),
            Stage("counters", self._profile(0), 1),
            Stage("second shapes against PyTorch", self._compare(1), few),
            Stage("torch.compile of the best", self._compiled, self.at_once),
            Stage("other shapes against PyTorch", [*self._compare(2), *self._compare(3)], few),
            Stage("long episodes", self._long(), few),
            Stage("counters, other shapes", [*self._profile(1), *self._profile(2)], 1),
            Stage("rates", [self._timing("rates/last", 60, "rates")]),
        ]

    def _compare(self, index: int) -> list[Task]:
        return self._at_shape(index, TIMED, "compare", "compare")

    def _profile(self, index: int) -> list[Task]:
        return self._at_shape(index, COUNTED, "counters", "profile")

    def _at_shape(self, index: int, operators: Iterable[str], prefix: str, kind: str) -> list[Task]:
        """Each operator at the shape of that index, in both directions."""
        return [
            self._timing(f"{prefix}/{op}/{shape}/{direction}", 90, kind, operator=op,
                         shape=shape, direction=direction)
            for op in operators
            for shape in [(TIMED_SCANS if op == "causal_scan" else TIMED_SHAPES)[index]]
            for direction in DIRECTIONS
        ]  # fmt: skip

    def _long(self) -> list[Task]:
        return [
            self._timing(f"compare/{op}/{shape}/{direction}", 120, "compare", operator=op,
                         shape=shape, direction=direction)
            for op, shapes in TIMED_MORE.items()
            for shape in shapes
            for direction in DIRECTIONS
        ]  # fmt: skip

    def _compiled(self, found: list[dict]) -> list[Task]:
        """For the rows of the first two shapes there are."""
        latest = rows.latest(found)
        tasks = []
        for task in [*self._compare(0), *self._compare(1)]:
            row = latest.get(task.key, {})
            if row.get("state") != rows.OK and not self.rehearsal:
                continue
            rival = "" if self.rehearsal else row["result"]["row"]["rival"]
            operator, shape, direction = task.key.split("/")[1:]
            tasks.append(
                self._timing(f"compiled/{operator}/{shape}/{direction}", 150, "compiled",
                             operator=operator, shape=shape, direction=direction,
                             rival=rival)
            )  # fmt: skip
        return tasks

    # ----------------------------------------------------------------------------------- Triton

    def _triton(self) -> list[Stage]:
        precompile = [
            self._task(f"precompile/{op}/{name}/{dtype}", 200, "precompile", operator=op,
                       shape=shape, dtype=dtype)
            for dtype in ("float32", "float64")
            for name, shape in SMOKE.items()
            for op in OPERATORS
        ]  # fmt: skip
        duels = [
            self._timing(f"duel/{op}/{shape}", 120, "duel", operator=op, shape=shape)
            for index in range(4)
            for op in TIMED
            for shape in [(TIMED_SCANS if op == "causal_scan" else TIMED_SHAPES)[index]]
        ]
        few = max(1, min(4, self.at_once // 2))
        repeated = [
            self._task(f"{kind} by triton/{op}", 120, kind, operator=op, shape=SMOKE["small"],
                       backend="triton")
            for kind in ("graphs", "determinism")
            for op in OPERATORS
        ]  # fmt: skip
        return [
            Stage("compiling", precompile, self.at_once),
            Stage("smoke", self._smoke("triton", {"triton": {}}), self.at_once),
            Stage("CUDA C++ against Triton", duels[: len(TIMED)], few),
            Stage("graphs, determinism", repeated, self.at_once),
            Stage("CUDA C++ against Triton, more", duels[len(TIMED) :], few),
            Stage("tests", self._suites("triton", "test by triton"), self.at_once),
        ]


def files_of(folder: Path, phase: str) -> Path:
    return folder / f"{phase}.jsonl"


def keys(stages: Sequence[Stage], found: Callable[[], list[dict]] = list) -> list[str]:
    """What the stages ask, as far as it is known before."""
    return [
        task.key
        for stage in stages
        for task in (stage.tasks(found()) if callable(stage.tasks) else stage.tasks)
    ]
