"""Read files of dated jobs (resumes) as careers."""
