"""Numbers of every type of PTX: those at the edges, and any."""

import numpy as np

# 44 lanes: a whole warp, and a part of one.
LANES = 44
EDGES = {
    "16": [0, 1, 2, 0x7FFF, 0x8000, 0xFFFF, 0x1234],
    "32": [0, 1, 2, 31, 32, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x12345678, 0xCAFEBABE],
    "64": [0, 1, 2, 63, 64, 2**63 - 1, 2**63, 2**64 - 1, 0x123456789ABCDEF0, 2**32],
}


def integers(kind: str, seed: int = 0) -> np.ndarray:
    """Numbers of a type such as s32: edges first, then any."""
    bits = kind[1:]
    dtype = np.dtype(f"u{int(bits) // 8}")
    rng = np.random.default_rng(seed)
    edges = np.array(EDGES[bits], dtype)
    rest = rng.integers(0, 2 ** int(bits), LANES - len(edges), dtype=np.uint64).astype(dtype)
    values = (
        rng.permutation(np.concatenate([edges, rest])) if seed else np.concatenate([edges, rest])
    )
    return values.view(np.dtype(f"i{int(bits) // 8}")) if kind[0] == "s" else values


def floats(kind: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    edges = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 1e-40, 3.5]
    rest = rng.standard_normal(LANES - len(edges)) * 10.0 ** rng.integers(-6, 6, LANES - len(edges))
    values = np.concatenate([edges, rest]).astype(f"f{int(kind[1:]) // 8}")
    return rng.permutation(values) if seed else values


def wide(values: np.ndarray) -> np.ndarray:
    return values.astype(object)


def wrapped(values, like: np.ndarray) -> np.ndarray:
    bits = 8 * like.itemsize
    unsigned = np.array([int(v) % 2**bits for v in values], dtype=f"u{like.itemsize}")
    return unsigned.view(like.dtype)


def equal(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(got, expected.astype(got.dtype))
