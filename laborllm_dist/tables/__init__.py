"""The Parquet tables: their columns, and how they are read and written."""
