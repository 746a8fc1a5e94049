"""The client's side of a launch: where a JobSpec goes. Knows nothing of what the controller does there."""
