"""Readers, one a kind of source: raw files to career histories."""
