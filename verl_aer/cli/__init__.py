"""Provide the command `verl-aer`, one file per command.

veRL's own command trains. This command checks a run before it and evaluates it afterwards.
"""
