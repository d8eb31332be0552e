"""ONNX artifacts: graphs over the checkpoint's own weight files.

export         the folder
dialect        what all dialects share; a dialect is a way to write the network in operators
contrib        the dialect of ONNX Runtime's own operators
standard       what dialects of standard operators share; std17, std17_nbits, std21, std24
attention      attention by standard operators
nbits, blocked quantized products: MatMulNBits, DequantizeLinear in blocks
graph          a builder of graphs
weights        which bytes of which file a graph takes
external_data  where a graph's weights lie, read and checked
facts          what a graph says of itself, as metadata
genai          genai_config.json
genai_search   how a model samples, in its words
graph_check    is a graph what its folder's config and weights give?
names          names of files
"""
