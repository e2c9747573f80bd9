"""Read extracts of the NLS Investigator: NLSY79 and NLSY97."""
