"""Checkpoints that other tools quantized, in safetensors: read as float, never written.

settings            our own scheme, somebody else's, or none: what a folder is opened as
recognise           whose settings are these? what is known and not read
source              the quantized matrices as float tensors, row by row, checked when opened
layout              what every format has: the tensors of a matrix, and its rows in float32
config_keys         keys of a quantization_config: used, neutral, unknown

gptq                AutoGPTQ, GPTQModel, AutoRound
awq                 AutoAWQ: GEMM and GEMV
bitsandbytes        int8 rows; NF4 and FP4
fp8                 DeepSeek's blocks, vLLM, FBGEMM, ModelOpt, Quark
mlx                 MLX, affine and mxfp4
compressed_tensors  what the library of that name writes and dsconv's own schemes do not hold

packed_integers     integers of 1 to 8 bits in words of 32
scaled              one number to a weight times a scale: FP8, int8
four_bit_floats     NVFP4 and MXFP4
"""
