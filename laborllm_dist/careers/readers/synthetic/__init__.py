"""A made labor market whose transition probabilities are known."""
