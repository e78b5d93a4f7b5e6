"""Chaos: a whole stack of real processes under faults, and what must be true at the end.

    python -m tests.chaos --minutes 30 --seed 1

Two brokers, three fetchers, a simulator in Keepa's place, a Postgres; each pair talks
through a proxy. Faults strike in a random order that the seed repeats, each at least once
if the time is enough. The exit code is 1 if anything was lost, doubled, overspent or left.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.run import Plan, run


def main() -> None:
    """Runs chaos, and prints progress, recovery times and verdict."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=2.0, help="time for faults")
    parser.add_argument("--seed", type=int, default=1, help="of order, choices and deals")
    parser.add_argument("--only", default="", help="faults with this text in their names")
    parser.add_argument("--keep", type=Path, help="a folder for logs that stays")
    given = parser.parse_args()

    began_s = time.monotonic()

    def say(line: str) -> None:
        sys.stdout.write(f"{time.monotonic() - began_s:7.1f} s  {line}\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        folder = given.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        if any(folder.iterdir()):
            parser.error(f"--keep: {folder} is not empty; remove it or name another folder")
        plan = Plan(given.minutes * 60, given.seed, given.only)
        try:
            outcome = run(plan, folder.resolve(), say)
        except KeyboardInterrupt:
            sys.stdout.write("interrupted; everything has been stopped\n")
            raise SystemExit(130) from None
    sys.stdout.write(outcome.table() + "\n")
    sys.stdout.write("".join(f"FAILED: {line}\n" for line in outcome.problems))
    raise SystemExit(1 if outcome.problems else 0)


if __name__ == "__main__":
    main()
