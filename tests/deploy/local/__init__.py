"""Tests of the stack on one machine."""
