"""What a machine receives: the job as frozen, versioned data, the archive of its code, and the versions that have to fit together."""
