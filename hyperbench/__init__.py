"""hyperbench: time and error of approximate attention beside exact attention."""

__version__ = "0.1.0"
