"""Scripts: training, sampling, comparisons. Each tells its use by --help."""
