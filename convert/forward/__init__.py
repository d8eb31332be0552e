"""A family run in torch, on the CPU or a device.

torch_ops         the interpreter: the reference forward
streamed_forward  the same over many windows, one layer's weights in memory at a time
batch_generation  the interpreter that writes many texts at once
activation_store  activations of many windows, in memory or in a file
workers           threads that do not change results
malloc            freed memory goes back to the system
"""
