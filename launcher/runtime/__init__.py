"""What runs after a submit: supervisor, controller, workers, and the connection between them."""
