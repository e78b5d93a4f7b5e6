"""Names the fixtures that several parts share; each lives in a file of its topic."""

pytest_plugins = [
    "tests.fix_postgres",
    "tests.fix_pgbouncer",
    "tests.fix_simulator",
    "tests.fix_broker",
    "tests.fix_proxy",
    "tests.fix_service",
    "tests.fix_fetcher",
    "tests.fix_broker_client",
    "tests.fix_certificates",
]
