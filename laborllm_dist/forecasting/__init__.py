"""Occupations several years ahead."""
