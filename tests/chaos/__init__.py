"""A whole stack of real processes under faults; see `python -m tests.chaos --help`."""
