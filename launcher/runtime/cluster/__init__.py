"""What the controller does with Ray and Kubernetes. Runs in the controller."""
