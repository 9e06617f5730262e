"""Evaluation of models: sampled answers, pass@k and maj@k with intervals, and comparisons."""
