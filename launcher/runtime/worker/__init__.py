"""A worker: one rank of the job. Runs in the worker process, a Ray actor."""
