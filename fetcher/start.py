"""Entry point of `dealfetcher`; works where the command's libraries are missing."""

from protos.process import extras


def main() -> None:
    """Run the command."""
    extras.run("fetcher.__main__", extra="fetcher")
