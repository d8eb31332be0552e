"""Pure tensor math: schemes, packing, rounding."""
