"""Scripted runs and the command line: a leaf that nothing else imports."""
