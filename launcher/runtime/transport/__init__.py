"""The connection between controller and workers."""
