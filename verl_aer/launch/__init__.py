"""Starting and ending runs: a runner, a Ray node, checks of an installation and of a cluster, and why a run failed."""
