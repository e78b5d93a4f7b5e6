"""What processes take: processor time and memory, as the kernel counts them (Linux)."""

import os
from pathlib import Path
from typing import Final

CLOCK_TICKS: Final = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Processor time of the process so far, in seconds, to a hundredth."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def family_cpu_s(pid: int) -> float:
    """The same of the process and its children, those that have ended included."""
    ended = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    waited_s = (int(ended[13]) + int(ended[14])) / CLOCK_TICKS
    return cpu_s(pid) + waited_s + sum(cpu_s(int(child)) for child in children)


def resident_mb(pid: int) -> float:
    """Resident memory of the process, in megabytes (2**20 bytes)."""
    return _kilobytes(pid, "VmRSS") / 1024


def _kilobytes(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise LookupError(field)


def precise_cpu_s(pid: int) -> float:
    """Processor time of the threads that the process has now, in seconds, to a microsecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
