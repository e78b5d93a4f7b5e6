"""Entry point of `keepa-simulator`; it reports missing libraries in one line."""

from protos.process import extras


def main() -> None:
    """Runs the command."""
    extras.run("deploy.keepa_simulator.__main__", extra="simulator")
