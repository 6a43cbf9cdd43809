"""`python -m mmcoref` is `mmcoref`."""

from mmcoref.cli import command

command()
