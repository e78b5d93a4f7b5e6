"""Names the fixtures that several parts share; each lives in a file of its topic."""

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The suite tries the same examples each time, so that a change is judged by what it changes,
# and not by the dice; nor by how busy the machine is. `make fuzz` looks for new ones.
settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("same")

# A shell starts its background jobs with SIGINT ignored, and programs inherit that: the
# tests that press Ctrl-C would wait for ever. A handler is not inherited.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests start hundreds of programs. Without caches of compiled code each start takes thrice
# as long.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

pytest_plugins = [
    "tests.fix_postgres",
    "tests.fix_pgbouncer",
    "tests.fix_journal",
    "tests.fix_simulator",
    "tests.fix_broker",
    "tests.fix_proxy",
    "tests.fix_service",
    "tests.fix_fetcher",
    "tests.fix_broker_client",
    "tests.fix_certificates",
]

# Whole stacks of processes take long, whatever they test.
STACKS = Path(__file__).parent / "e2e"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of whole stacks as slow."""
    for item in items:
        if STACKS in item.path.parents:
            item.add_marker(pytest.mark.slow)
