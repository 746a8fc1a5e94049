"""What a controller leaves in the run store, and the figures that it shows. Runs in the controller process."""
