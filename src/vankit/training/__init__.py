"""Training: recipes and data in, weights and logs out. The only room that knows Lightning."""
