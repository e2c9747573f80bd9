"""Careers: histories, occupations, readers of data files, splits and the text template. No torch here."""
