"""dsconv: quantize, export, run and verify distilled LLM checkpoints."""

__version__ = "0.1.0"
