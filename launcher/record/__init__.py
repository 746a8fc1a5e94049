"""What a run leaves behind: keys of its store, lineage of terms, desired state, status."""
