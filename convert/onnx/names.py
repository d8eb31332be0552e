"""File names of an ONNX artifact, apart from the exporter so that readers need not load it."""

GRAPH_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
GENAI_CONFIG = "genai_config.json"
