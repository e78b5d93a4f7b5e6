"""The broker's logic, pure: which request gets tokens, and when. No I/O, no clock, no await."""
