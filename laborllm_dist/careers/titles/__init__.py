"""Free job titles to occ1990dd, by the alphabetical index of the Census 2000."""
