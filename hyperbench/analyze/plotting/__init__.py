"""Parts of figures: style, layout, traces, the error panel, and writing to files."""
