"""The one way in which a build stops on purpose."""

from __future__ import annotations


class BuildError(SystemExit):
    """Stops the build with one sentence for the user and a non-zero exit, without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(f"kanerva_ext: {message}")
