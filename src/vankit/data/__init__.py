"""Images in: safe decoding, and the datasets of every task."""
