"""Entry point of `keepa-gateway`; it also runs where the command's libraries are missing."""

from protos.process import extras


def main() -> None:
    """Runs the command."""
    extras.run("fetcher.gateway.__main__", extra="gateway")
