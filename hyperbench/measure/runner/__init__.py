"""The parent process: decides what is measured when, and writes the journal. No torch."""
