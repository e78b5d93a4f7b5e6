"""What an exhibit is: a story, and a small change that brings the defect back."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch


@dataclass(frozen=True, slots=True)
class Exhibit:
    """One defect.

    `mutate` returns a context in which the project's own code has the defect.
    """

    name: str
    story: str
    mutate: Callable[[], AbstractContextManager[Any]]


def replacing(owner: type[Any], attribute: str, mutant: Any) -> Callable[[], Any]:
    """A mutation that puts *mutant* in the place of a class's member."""
    return lambda: patch.object(owner, attribute, mutant)
