"""The process group of one generation."""
