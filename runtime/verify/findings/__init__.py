"""What is wrong with an artifact apart from the figures, and where.

integrity         files and tensors against the hashes that were written with them
signature         who vouches for them
tokenizer         tokenizer and chat template against the original's
structure         sizes, and the graph or program that they give
artifact_weights  the weights of an artifact, whatever its format
layers            each layer and its weights against the original's, on the same inputs
matrices          errors of matrices that rounding does not explain
vectors           norms and biases; smoothing taken back
"""
