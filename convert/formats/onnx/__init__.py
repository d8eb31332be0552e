"""ONNX export: one builder, three dialects of the operator set."""
