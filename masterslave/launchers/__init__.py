"""Ways to start slaves."""
