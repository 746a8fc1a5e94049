"""The connections between controller and workers. Each side runs in its own process."""
