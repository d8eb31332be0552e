"""Many sequences over the same weights, one file per runtime: a pass reads them once for all.

batch         what every runtime offers
open          the batch of whatever session is loaded
native        .dsq files, on the engine in C++
rows          what batches with a row for every sequence share
onnx          ONNX graphs
torch_device  checkpoints on torch devices, and on the CPU
torch_pass    one pass over many sequences in torch
one_by_one    a session that holds one sequence at a time
"""
