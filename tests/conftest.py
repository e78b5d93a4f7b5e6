"""Names the fixtures that several parts share; each lives in a file of its topic."""

import signal

# A shell starts its background jobs with SIGINT ignored, and programs inherit that: the
# tests that press Ctrl-C would wait for ever. A handler is not inherited.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

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
