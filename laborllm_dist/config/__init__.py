"""Every setting: what the files of conf/ may say, and how they are read."""
