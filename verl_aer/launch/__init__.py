"""Start and check runs: a runner, a Ray node, and checks of an installation and of a cluster."""
