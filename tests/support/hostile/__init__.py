"""Inputs that strangers control, made wrong: the kinds of them, and how each is changed."""
