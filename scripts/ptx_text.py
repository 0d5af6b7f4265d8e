"""Reads the PTX that nvcc writes: its kernels, what they call, and how they access memory."""

from __future__ import annotations

import re
from dataclasses import dataclass

# A function or kernel, which ends with the first brace at the start of a line.
_FUNCTION = re.compile(
    r"^\.(?:visible |weak )?\.?(entry|func)\b[^{;]*?\b(\w+)\s*\([^{;]*\{\n.*?^\}\n", re.M | re.S
)
# ld or st without a space of memory, after which ptxas writes LD or ST instead of LDG, LDS or LDL.
_GENERIC = re.compile(
    r"^\s+(?:@!?%p\d+\s+)?(?:ld|st)"
    r"(?:\.(?:volatile|weak|relaxed|acquire|release|cta|cluster|gpu|sys|nc|v[24]))*"
    r"\.[bsuf]\d+\s",
    re.M,
)


@dataclass(frozen=True)
class Kernel:
    """What the text of one kernel says."""

    name: str  # mangled
    threads: int  # of a block, at most; 0: not said
    blocks: int  # on a multiprocessor at a time, for which registers must be left; 0: not said
    generic: int  # loads and stores whose space of memory the compiler does not know
    calls: int

    @classmethod
    def of(cls, name: str, body: str) -> Kernel:
        def number(directive: str) -> int:
            found = re.search(rf"^\.{directive} (\d+)", body, re.M)
            return int(found[1]) if found else 0

        return cls(
            name,
            number("maxntid"),
            number("minnctapersm"),
            len(_GENERIC.findall(body)),
            len(re.findall(r"^\s+(?:@!?%p\d+\s+)?call\b", body, re.M)),
        )


def functions(text: str) -> dict[str, tuple[str, str]]:
    """Mangled name -> "entry" or "func", and the whole text of it."""
    return {m[2]: (m[1], m[0]) for m in _FUNCTION.finditer(text)}


def kernels(text: str) -> list[Kernel]:
    return [
        Kernel.of(name, body) for name, (kind, body) in functions(text).items() if kind == "entry"
    ]


def one_kernel(text: str, name: str) -> str:
    """PTX with this kernel and what it calls, and nothing else: ptxas takes a second for it."""
    known = functions(text)
    if known.get(name, ("", ""))[0] != "entry":
        raise ValueError(f"there is no kernel {name} in this PTX")
    needed, found = [name], {name}
    while needed:
        for called in set(re.findall(r"\b_Z\w+", known[needed.pop()][1])) & known.keys() - found:
            found.add(called)
            needed.append(called)
    head = re.findall(r"^\.(?:version|target|address_size) .*$", text, re.M)
    data = re.findall(
        r"^(?:\.extern |\.visible |\.weak )*\.(?:shared|global|const) [^;]*;", text, re.M
    )
    order = [n for n in known if n in found]
    declared = [
        body[: body.index("{\n")].rstrip() + ";"
        for kind, body in (known[n] for n in order)
        if kind == "func"
    ]
    parts = [*head, *data, *declared, *(known[n][1] for n in order)]
    kept = (line for line in "\n".join(parts).splitlines() if not re.match(r"\s*\.loc\b", line))
    return "\n".join(kept) + "\n"
