"""What developers of hyperbench run and its users do not."""
