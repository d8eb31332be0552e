"""What is in a model, an artifact, or any other file.

describe         a model or an artifact that dsconv opens
raw_description  what can be shown of files that it does not open, with the reason
description      what both return
gguf_facts       the same of a GGUF file, of any architecture
model_facts      sizes, text, sampling and source of a model
"""
