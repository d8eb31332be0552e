"""Ways to write a network in operators: a dialect is a file.

dialect        what all of them share
contrib        ONNX Runtime's own operators
standard       what those of standard operators share
std17, std17_nbits, std21, std24  of the opsets of these numbers
attention      attention by standard operators
nbits, blocked quantized products: MatMulNBits, DequantizeLinear in blocks
"""
