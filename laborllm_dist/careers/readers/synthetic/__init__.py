"""A synthetic labor market with known transition probabilities."""
