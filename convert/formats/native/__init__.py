"""The native format: one file that is mapped into memory and run as it is."""
