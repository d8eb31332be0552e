"""How large the parts of a file that somebody else made may be; docs/limits.md is the same table.

A limit is far above what any model in use has, and far below what would exhaust a machine. Readers
look it up here when they need it, and name it when it is exceeded.
"""

from __future__ import annotations

MIB = 2**20

# JSON: config.json, index, manifests and all the rest; tokenizer.json is larger.
JSON_BYTES = 64 * MIB
TOKENIZER_BYTES = 128 * MIB
JSON_DEPTH = 64  # levels; what is in use has under ten

# safetensors and `.dsq`
HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
TENSORS = 100_000  # DeepSeek-V3, the largest in use, has about 92,000
RANK = 8
NAME_BYTES = 512
SHARDS = 10_000

# config.json
LAYERS = 1_000
VOCABULARY = 4_000_000
HIDDEN = 1_000_000
INTERMEDIATE = 64_000_000
POSITIONS = 2**28
PATTERNS = 256  # of quantization_config that are more than a name
PATTERN_CHARACTERS = 4_096

# GGUF
GGUF_HEADER_BYTES = 256 * MIB  # the largest vocabulary in use takes under 16 MiB
GGUF_KEYS = 65_536
GGUF_ARRAY_ITEMS = 4_000_000  # of all arrays together; in use: up to 1.5 million
GGUF_RANK = 4
GGUF_ALIGNMENT = 65_536

# `.dsq` programs
BUFFERS = 1_000
STEPS = 100_000
HEADS = 2**24  # and features of a head
DIMENSION = 2**31 - 1

# ONNX
GRAPH_BYTES = 2**31 - 1  # the limit of protobuf
MASK_BYTES = 1024 * MIB  # of a graph of fixed shapes: a row per token of a run

# Other files in a model's folder: side files, chat templates among them; recipes
SIDE_FILE_BYTES = 128 * MIB
RECIPE_BYTES = 65_536

# tokenizer.json, beyond its size
ADDED_TOKENS = 100_000
TOKEN_CHARACTERS = 4_096  # a tree of longer ones overflows the stack of the tokenizers library
UNIGRAM_CHARACTERS = 2_000_000  # of all tokens: its tree takes 340 bytes for each
TOKENIZER_STAGES = 64  # normalizers, pre-tokenizers, decoders: each
REPLACEMENT_GROWTH = 64  # times that all replacements together may lengthen a text
REPLACEMENT_CHARACTERS = 256
TOKENIZER_PATTERN_CHARACTERS = 20_000
PATTERN_LOOPS = 3  # unbounded repetitions in one alternative of a pattern
PATTERN_REPEATS = 1_000  # the most that {n,m} may ask for

# Chat templates
TEMPLATE_CHARACTERS = MIB
TEMPLATE_OUTPUT = MIB  # characters of the output, and of any value on the way, beyond the messages
TEMPLATE_SECONDS = 1.5
TEMPLATE_MEMORY = 256 * MIB  # beyond what is in use when rendering begins
TEMPLATE_INTEGER_BITS = 4_096
