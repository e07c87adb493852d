"""What figures are made of: style, traces, and writing them to files."""
