"""What runs after a submit, one folder for each process. The first line of a file says which process it runs in, or that it is pure."""
