"""A model on disk.

checkpoint           the model: config, family, tensors, tokenizer files
weight_files         which files of a folder are its weights
tensors              where tensors come from, opened lazily
tensor_names         names with a wrapper's prefix -> those of the architecture
leftovers            tensors in files that are no weights
check                are the tensors what config.json promises?
stored_head          a head of its own in a checkpoint that says it has none
no_model             folders and files that are no model, by what they are
matrix_layout        how a quantized matrix lies in safetensors
quantization_config  which scheme each module has, as config.json says it
module_patterns      which modules such a rule names
jobs                 what a folder will hold: tensors, shards, row chunks
manifest             dsconv.json: what an output was made from, with all hashes
"""
