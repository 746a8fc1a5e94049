"""The state of training: what it is, how it moves to other ranks and into a checkpoint."""
