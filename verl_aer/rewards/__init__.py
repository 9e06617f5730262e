"""Reward functions for veRL's `custom_reward_function`. `math_reward` scores mathematical answers."""
