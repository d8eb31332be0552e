"""What is written for each reader, a folder each; every one has its `export`.

onnx                ONNX graphs and their weights
native              one .dsq file for the engine of this package
gguf                one file for llama.cpp, read as well
compressed_tensors  a folder for transformers and vLLM
ascend              a folder for Huawei's software, read as well
foreign             what other tools quantized; read only

repack      a checkpoint's tensors for another reader: new where they change, linked where not
float_copy  tensors without quantization, and the files beside them
notes       what an export has changed, in words
"""
