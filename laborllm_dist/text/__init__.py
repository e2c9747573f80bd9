"""Career histories to text."""
