"""Entry point of `dealfetcher`; works where the command's libraries are missing."""

from protos.process import extras


def main() -> None:
    """Runs the command."""
    extras.run("fetcher.__main__", extra="fetcher")
