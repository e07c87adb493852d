"""hyperbench: time and error of approximate attention alongside exact attention."""

__version__ = "0.1.0"
