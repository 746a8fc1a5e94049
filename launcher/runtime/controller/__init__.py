"""The controller process: one for a run at a time."""
