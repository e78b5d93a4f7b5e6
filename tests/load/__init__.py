"""The broker under load and under arbitrary calls; see `make load`."""
