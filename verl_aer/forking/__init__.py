"""Ray workers that start as forks of a process with their imports done; used where a run has no accelerator.

This folder is not below ``cpu``, because importing ``cpu`` imports veRL, and the server has to prepare that.
"""
