"""A quantized checkpoint as transformers and vLLM load it.

export            the folder
portable_schemes  which matrices they take as they are, and what the others become
"""
