"""Rounding on a calibration text, layer by layer (docs/calibration.md).

calibrate       what becomes of the matrices of an input, and of its bias
forward_pass    the interpreter that quantizes while it runs, over all windows
moments         second moments of inputs, summed over the windows
matrix          one matrix, rounded with error feedback
weights         where a run reads weights: the original's, and those it has written
embedding       the embedding
head_moments    the inputs of the head, as the original gives them
smooth          loud inputs divided, and who is divided by it
divergence      how far the next token is from the original's, at the end
progress        how far a run is, and what is kept of it
residual_files  the activations that are kept on disk
memory_budget   who gets how much of --max-memory
"""
