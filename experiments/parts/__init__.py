"""What several scripts share: the command, the terminal, plots, recipes."""
