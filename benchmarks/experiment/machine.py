"""The machine of a measurement, in words. Imports no torch."""

import os
import platform
import re
from pathlib import Path


def processor_name() -> str:
    """Return the model of the processor, or its kind where the system does not tell more."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text() if cpuinfo.exists() else "", flags=re.MULTILINE)
    return names[0].strip() if names else platform.processor() or platform.machine()


def machine() -> str:
    """Return the processor, the number of cores and the system."""
    return f"{processor_name()}, {os.cpu_count()} cores, {platform.system()}"
