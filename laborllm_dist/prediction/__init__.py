"""Next occupations of careers of the user's own."""
