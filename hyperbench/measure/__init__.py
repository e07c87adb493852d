"""The writing wing: runs methods and writes to the store. The only place of hyperbench that imports torch."""
