"""What should happen to the worker group, and why. Pure: a snapshot in, a decision out."""
