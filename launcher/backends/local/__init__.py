"""A Ray of its own on this machine."""
