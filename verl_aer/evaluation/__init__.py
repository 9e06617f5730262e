"""Evaluation of sampled answers: samples, pass@k and maj@k with their intervals, and comparisons."""
