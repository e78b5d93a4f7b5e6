"""Delivering alerts: channels, the text of messages, the sender, troubles of operators."""
