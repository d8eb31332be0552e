"""Many sequences over the same weights, one file per runtime: a pass reads them once for all.

batch       what every runtime offers
open        the batch of whatever session is loaded
native      .dsq files, on the engine in C++
onnx        ONNX graphs with GroupQueryAttention
one_by_one  a session that holds one sequence at a time
"""
