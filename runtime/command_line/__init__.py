"""What every command has, whichever it is.

completion  what a shell offers behind an option or an argument
exit_codes  from a command that fails to two lines on stderr and an exit code
help        options and commands in groups
signals     Ctrl-C ends the process in time, whatever it is busy with
"""
