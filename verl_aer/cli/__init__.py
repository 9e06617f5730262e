"""Provide the command `verl-aer`, one file per command.

Training itself is veRL's own command. This one looks before and after it.
"""
