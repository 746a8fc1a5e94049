"""One worker's program: the stream of samples, shards, the step, the loop. torch, and no Ray."""
