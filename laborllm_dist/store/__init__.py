"""Tokens: the tokenizer, careers as ids with the span of every title, and the token store."""
