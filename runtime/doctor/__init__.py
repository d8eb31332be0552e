"""What is installed, what of it really works, and what repairs the rest.

diagnose      all targets, each in a process of its own, and what their packages do to each other
probe         one target: the program of such a process
graphs        tiny ONNX graphs with known results
torch_trials  the same matrices on a torch device
"""
