"""The control loop, closed on the driver: state, state file, metrics, warnings and a simulation."""
