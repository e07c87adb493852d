"""Language models: the only place that imports transformers (extra `lm`)."""
