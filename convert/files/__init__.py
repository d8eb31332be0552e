"""Reading what strangers wrote: nothing larger, deeper or slower than expected gets through.

limits        how large each part of a file may be
local_files   opening: regular files only, names that stay in their folder
impostors     what a file is that is not what its name says
known_key     what a key of a settings file means to us
json_file     strict JSON, and typed access to it
toml_file     TOML, with its errors told
patterns      is a regular expression safe to run?
gguf_parts    the names of a GGUF model in several files
safetensors   the container: rows of a tensor read, a file written in a stream
hashes        sha256 of files, remembered
cache_folder  where dsconv keeps what it can make again
"""
