"""Entry point of `tokenbroker`; it also runs where the command's libraries are missing."""

from protos.process import extras


def main() -> None:
    """Runs the command."""
    extras.run("broker.__main__", extra="broker")
