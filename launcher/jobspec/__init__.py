"""What a machine receives: the job as frozen, versioned data, and the states that a run goes through."""
