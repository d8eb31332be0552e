"""GGUF, the file of llama.cpp: written and read.

export           the file
read             a checkpoint from it
container        its metadata, and the bytes of its tensors
blocks           codes and scales as llama.cpp's blocks
metadata         the architecture, and the names of tensors
write_tokenizer  tokenizer.json as metadata; read_tokenizer: back again
pretokenizers    how texts are split, by the names that llama.cpp gives
seal             what a file says of its source, and a hash over all of it
"""
