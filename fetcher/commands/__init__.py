"""The `dealfetcher` commands; each file holds those that belong together."""
