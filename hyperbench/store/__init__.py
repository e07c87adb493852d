"""A run's folder: its records, its journal and the tables made from it."""
