"""The `dealfetcher` commands, related ones in one file."""
