"""Processes of their own: dsconv forked, or on a disk of a few kilobytes; llama.cpp."""
