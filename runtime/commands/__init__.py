"""One file per command of `dsconv`: its options, its example, and what it prints.

A command has the library do the work, and prints the result as JSON or by `show`. Heavy imports lie
inside the functions, since help needs none of them. Only cli.py imports a command.

The commands have no `from __future__ import annotations`: it makes strings of all options, and to
compile them again takes a quarter of the time of `dsconv --help`.

pull, quantize, plan, export, lint, targets, run, serve, verify, sign, bench, inspect, doctor, demo,
build, recipes: the command of that name

options: what several commands share, and how JSON is printed
"""
