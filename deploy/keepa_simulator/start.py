"""Entry point of `keepa-simulator`; works where the command's libraries are missing."""

from protos.process import extras


def main() -> None:
    """Runs the command."""
    extras.run("deploy.keepa_simulator.__main__", extra="simulator")
