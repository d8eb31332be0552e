"""File names of an ONNX artifact, apart from the exporter so that readers need not load it."""

GRAPH_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
GENAI_CONFIG = "genai_config.json"
PREFILL_FILE = "prefill.onnx"  # of an artifact with fixed shapes: many tokens per run
FIXED_SHAPES = "fixed_shapes.json"  # lies there in place of GENAI_CONFIG
DIALECT_NAMES = ("contrib", "std24", "std21", "std17", "std17-nbits")  # the keys of export.DIALECTS
# In the facts of the manifest, where matrices of fewer bits are float16 in the artifact.
NARROWEST_BITS = "narrowest_bits"
