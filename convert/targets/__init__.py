"""Where a model can run: the table of targets, the choice of an export, a check of graphs."""
