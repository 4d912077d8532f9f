#!/usr/bin/env python3
"""Start dllama from a fresh checkout: ``python3 launch.py demo``, or the name of a model to fetch and talk to.

Needs Python 3.11 and its standard library alone; what it does is in ``dllama/hub/launcher.py``. This file says so to
older Pythons, and so is written for them too.
"""

import os
import sys


def start():  # type: () -> int
    """Run as a program, by whatever Python there is, on whatever terminal."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if sys.version_info < (3, 11):  # noqa: UP036
        sys.stderr.write("🚨 dllama needs Python 3.11 or newer, this is " + sys.version.split()[0] + "\n")
        return 2
    sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120
    from dllama.hub import launcher

    return launcher.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(start())
