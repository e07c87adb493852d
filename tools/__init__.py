"""Programs for developers of hyperbench; its users need none of them."""
