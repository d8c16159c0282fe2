"""What runs a network: one call on arrays, whatever is behind it."""
