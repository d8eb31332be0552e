"""The native format: one file that is mapped into memory and run as it is (docs/native.md).

export         the file
file           opened, with everything in it checked
format         what its metadata says
program        the interpreter of a family: the steps that the engine runs
steps          what steps hold, and their JSON
program_check  does a program fit its tensors?
linear_layout  matrices in the order that the kernels read
"""
