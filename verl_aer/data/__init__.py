"""Prepare data sets for training and evaluation as parquet files in veRL's schema."""
