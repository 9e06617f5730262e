"""Evaluation of sampled answers: pass@k by difficulty level."""
