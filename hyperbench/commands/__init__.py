"""The commands of the command line, one module each; they import nothing heavy before they run."""
