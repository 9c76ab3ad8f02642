"""Finding a learning rate and choosing an optimizer."""
