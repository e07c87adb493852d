"""A module that prints where an answer is expected."""

from tests.helpers.odd_methods import exact as exact

print('{"torch": "a banner of mine"}')
