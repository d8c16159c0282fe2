"""Out of here: networks as folders that run elsewhere."""
