"""Batches: which careers share a row, which rank forwards which row in which pass, and the tensors of a forward.

Shape suffixes used from here up: B rows, T tokens of a row, V ids of the vocabulary, N chosen tokens.
"""
