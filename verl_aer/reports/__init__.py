"""Reading the metrics of runs, and showing them: summaries, tables, plots, an HTML page, the catalog of methods."""
