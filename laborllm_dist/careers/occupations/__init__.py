"""Occupations: codes, titles, crosswalks, and the coder of free-text titles."""
