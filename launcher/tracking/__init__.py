"""What is recorded of a run beside checkpoints: events, metrics, and their sinks."""
