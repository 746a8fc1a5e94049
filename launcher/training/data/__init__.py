"""The order of samples and how they are read."""
