"""The worker process: one for each rank."""
