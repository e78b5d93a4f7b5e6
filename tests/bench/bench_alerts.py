"""Delivery of alerts: the time from a crossing's commit to its delivery, with one sender.

    python -m tests.bench.bench_alerts

Commits 60 crossings, one every half second, while a sender serves a webhook on this machine.
Prints the median and the 95th percentile; exits 1 if the latter is above two seconds.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from deploy.local.postgres import PostgresServer
from fetcher.postgres import Database, migrate
from fetcher.postgres.alerts import end_first_run, standings_of_alerts
from tests.fetcher.alerts.receivers import webhook_receiver
from tests.fetcher.alerts.test_sender import (
    ASKED,
    channels_file,
    cross,
    messages,
    sending,
    works,
)
from tests.waiting import wait_until

CROSSINGS: Final = 60
PAUSE_S: Final = 0.5
LAG_MAX_S: Final = 2.0


def main() -> int:
    """Measures once."""
    with tempfile.TemporaryDirectory(prefix="keepa-alerts-") as name, webhook_receiver() as hook:
        folder = Path(name)
        folder.chmod(0o755)
        with PostgresServer(folder / "data", log_path=folder / "log") as server:
            url = server.create_database("alerts")
            migrate(url)
            with Database(url, connections_max=6) as database:
                with database.connection() as connection:
                    standings_of_alerts(connection, ASKED)
                    end_first_run(connection, ASKED)
                with sending(database, channels_file(folder, team=hook.address)):
                    wait_until(lambda: works(database), "a sender at work")
                    for number in range(CROSSINGS):
                        cross(database, number)
                        time.sleep(PAUSE_S)
                    wait_until(
                        lambda: len(messages(database, "delivered")) == CROSSINGS, "deliveries"
                    )
                lags = sorted(
                    (one["delivered_at"] - one["created_at"]).total_seconds()
                    for one in messages(database)
                )
    middle, high = lags[len(lags) // 2], lags[int(len(lags) * 0.95)]
    sys.stdout.write(f"{CROSSINGS} crossings: median {middle:.2f} s, 95 % within {high:.2f} s\n")
    return int(high > LAG_MAX_S)


if __name__ == "__main__":
    raise SystemExit(main())
