"""Reading the metrics of runs, and showing them: summaries, plots, an HTML page and the catalog of methods."""
