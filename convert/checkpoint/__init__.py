"""A model on disk.

checkpoint           the model: config, family, tensors, tokenizer files
tensors              where tensors come from, opened lazily
matrix_layout        how a quantized matrix lies in safetensors
quantization_config  which scheme each module has, as config.json says it
module_patterns      which modules such a rule names
jobs                 what a folder will hold: tensors, shards, row chunks
manifest             dsconv.json: what an output was made from, with all hashes
"""
