"""ONNX artifacts: graphs over the checkpoint's own weight files.

export         the folder
dialects       ways to write the network in operators
graph          a builder of graphs
weights        which bytes of which file a graph takes
external_data  where a graph's weights lie, read and checked
placing        what of the weights an artifact carries
graph_source   weights read back out of a graph, as a checkpoint
graph_tensors  a checkpoint's tensors made from those of a graph
facts          what a graph says of itself, as metadata
genai          genai_config.json
genai_search   how a model samples, in its words
graph_check    is a graph what its folder's config and weights give?
names          names of files
"""
