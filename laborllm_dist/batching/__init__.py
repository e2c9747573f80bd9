"""Batches: the careers of a row, the rows of each rank and micro-batch, and the input tensors of a forward pass.

Shape suffixes used from here up: B rows, T tokens of a row, V ids of the vocabulary, N chosen tokens.
"""
