"""Which machine this is, and which day, for files of results."""

from __future__ import annotations

import datetime
import os
import platform
from typing import Any

from dllama import machine
from dllama.version import isa


def machine_facts() -> dict[str, Any]:
    """Describe this machine as it is now."""
    return {
        "isa": isa(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "cpu": machine.cpu_name(),
        "cores": machine.physical_cores(),
        "memory_gib": round(machine.total_memory() / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "load_before": round(os.getloadavg()[0], 2),
    }
