"""The controller: it leads one run, and touches no tensor. Runs in the controller process."""
