"""Models loaded, one file per runtime: tokens in, logits out.

session               what every runtime offers
load                  opens whatever was named
native                `.dsq` files, on the engine in runtime/native
onnx                  ONNX graphs
onnx_fixed            ONNX graphs with fixed shapes
torch_reference       checkpoints, in torch on the CPU: the reference
torch_device_session  checkpoints, on any torch device
onnx_graph            opens a graph on a provider, finds which nodes run there
onnx_provider         a provider that runs where it was asked to, or says why not
captured_output       what a provider prints by itself, kept apart
providers             execution providers by short name
placement             which nodes ran where
packed_linear         matrices packed on a torch device
torch_device          torch's devices, and what is missing
compiled_graphs       where providers keep what they compile
huge_pages            weights in huge pages
"""
