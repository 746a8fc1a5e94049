"""The client's side of a launch: where a JobSpec is started. It does not know what the controller does there."""
