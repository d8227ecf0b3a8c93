"""The commands of the command line, for tests of all of them."""

import argparse


def commands(parser, words=()):
    """Every parser of the command line, by the words that lead to it."""
    yield words, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from commands(child, (*words, name))
