"""Scripts that prepare one data set each: `python -m data_prep.NAME --help`."""
