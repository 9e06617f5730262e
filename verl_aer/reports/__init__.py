"""Read the metrics of runs and present them: summaries, plots, an HTML page, and the catalog of methods."""
