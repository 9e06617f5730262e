"""The rollouts of a step: their groups, what shapings see of them, and the memory of questions across steps."""
