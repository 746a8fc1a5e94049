"""What a controller leaves in the run store and the figures it shows. Runs in the controller."""
