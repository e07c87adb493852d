"""Child processes that run the parent's own code, take none from the current folder, and die with their parent."""
