"""The command ``kanerva``: starts `kanerva_ext.cli`.

It is no module of the package, whose import takes seconds: Ctrl-C in them, or a package that cannot
be imported, is one line too.
"""

import os
import signal
import sys


def main() -> int:
    own_handler = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if own_handler:
        signal.signal(signal.SIGINT, _leave)
    try:
        from kanerva_ext.cli import main as command
    except ImportError as error:
        print(f"kanerva: {error}", file=sys.stderr)
        return 2
    finally:
        if own_handler:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    return command()


def _leave(*_) -> None:
    # At once: an import that is interrupted may turn the exception into another one.
    os.write(2, b"kanerva: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
