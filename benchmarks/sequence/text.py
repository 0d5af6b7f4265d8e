"""The text of the character model: what ships with every Python."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def read_text() -> tuple[Tensor, str]:
    """The topics of Python's ``help``, printable ASCII alone, as int64, and their SHA-256.

    Another version of Python has another text: the sum tells.
    """
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    data = bytes(b if b == 10 or 32 <= b < 127 else 127 for b in text.encode("ascii", "replace"))
    codes = torch.frombuffer(bytearray(data), dtype=torch.uint8).long()
    return torch.where(codes == 10, 0, codes - 31), hashlib.sha256(data).hexdigest()
