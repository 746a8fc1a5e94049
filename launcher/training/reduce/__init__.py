"""How gradients and sums of a step are added up over the ranks."""
