"""Defects that really happened in this field, rebuilt to see that the suite kills them."""
