"""Launching: the command line and clusters."""
