"""The worker process: checks, times and compares methods, and reports records."""
