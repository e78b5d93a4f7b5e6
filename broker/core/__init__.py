"""The broker's logic, pure: who gets tokens, and when. No I/O, no clock, no await."""
