"""Tables, figures and comparisons made from the store. Imports no torch and nothing of hyperbench.measure."""
