"""Logical shards of a batch: what makes a step independent of the number of workers."""
