"""The control loop on the driver: state, state file, metrics, warnings and a simulation."""
