"""GGUF, the file of llama.cpp: written and read.

export           the file
read             a checkpoint from it
read_config      its architecture and settings; keys: which are used, without effect, refused
source           its tensors, row by row; decode: blocks of every type as float32
split            a model in several files
container        the metadata of a file, and the bytes of its tensors
block_types      every type of number, by ggml's numbers
blocks           codes and scales as llama.cpp's blocks
metadata         the architecture, and the names of tensors
write_tokenizer  tokenizer.json as metadata; read_tokenizer: back again
sampling         how a model samples, as metadata and back
pretokenizers    how texts are split, by the names that llama.cpp gives
seal             what a file says of its source, and a hash over all of it
"""
