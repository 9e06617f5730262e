"""The rollouts of a step: their groups, the input of shapings, and the memory of questions across steps."""
