"""The reading wing: tables and figures from the store. Imports no torch and nothing of the writing wing."""
