"""Checkpoints: chunks under their digests, JSON state, and the manifest whose creation is the commit."""
