"""A Ray cluster that is there already."""
