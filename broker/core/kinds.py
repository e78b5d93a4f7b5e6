"""The base of enumerations that the core keeps tables by."""

from enum import Enum


class Kind(Enum):
    """An enumeration with members that hash by identity.

    A member exists once. Python's own hash of a member is a function in Python, and was a
    twentieth of a grant's time.
    """

    __hash__ = object.__hash__
