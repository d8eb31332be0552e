"""Sources in, formats out: checkpoints, families, ONNX."""
