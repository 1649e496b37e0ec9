"""Real surroundings for tests: what a test starts here, it ends."""
