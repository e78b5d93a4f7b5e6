"""Deals for other programs: one filter for commands, console and API, and the export."""
