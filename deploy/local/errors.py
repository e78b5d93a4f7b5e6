"""Failures of the stack, each with a message of one line.

* StackError
  - PostgresError
  - ProgramError
"""


class StackError(Exception):
    """The stack can't start or go on.

    Args:
        message: One line: the failure and its remedy.
        exit_code: 2 if a setting is wrong, else 1.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class PostgresError(StackError):
    """Postgres can't be found or started."""


class ProgramError(StackError):
    """A program ended, or did not get ready in time."""
