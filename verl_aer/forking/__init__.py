"""Start Ray workers as forks of a process that has done their imports; used in runs without an accelerator.

This folder is not below ``cpu``, because importing ``cpu`` imports veRL, which the server must prepare first.
"""
