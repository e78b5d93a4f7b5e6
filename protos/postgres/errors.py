"""Errors of Postgres, split by what the caller does next; needs no driver.

* DatabaseError            Postgres did not do the work
  - DatabaseAwayError        keep what there is to write, try again
    + DatabaseNotSetUpError    as above, but an operator must act first
  - DatabaseRefusedError     give up on this statement: it fails again
"""


class DatabaseError(Exception):
    """Postgres did not do the work; the message is one line and never holds the URL."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}: {remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy


class DatabaseAwayError(DatabaseError):
    """Postgres can't be reached, dropped the connection, or can't do the work now."""


class DatabaseNotSetUpError(DatabaseAwayError):
    """Tables, rights or the right encoding are missing; the message names the remedy.

    The same work succeeds once an operator has acted, so loops treat it as "away".
    """


class DatabaseRefusedError(DatabaseError):
    """Postgres refuses this statement with these values, now and later."""
