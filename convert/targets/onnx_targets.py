"""Targets that ONNX Runtime reaches through an execution provider."""

from __future__ import annotations

from .operators import CANN, MIGRAPHX, MUSA
from .target import GraphRecipe, GraphRules, Note, Refusal, Target

STANDARD = frozenset({""})
NO_BFLOAT16 = frozenset(
    {"FLOAT", "FLOAT16", "INT64", "INT32", "INT8", "UINT8", "INT4", "UINT4", "BOOL"}
)
PROTOBUF_BYTES = 2**31
TO_FLOAT16 = "export again with this --target, which writes float16 matrices"
TO_STANDARD_ATTENTION = "export again with this --target, which writes MatMul and Softmax"
PACKAGE = "its own measurement with the wheel named"
RUNTIME = "ONNX Runtime's source"

CPU = Target(
    "cpu",
    "any processor",
    ("onnx", "native", "gguf", "compressed-tensors"),
    "measured",
    provider="cpu",
    wheel="onnxruntime",
    versions="1.22 to 1.32",
    recipe=GraphRecipe("contrib"),
    rules=GraphRules(
        refused=(Refusal("PagedAttention", "a CUDA kernel only", "use GroupQueryAttention"),),
        checks=("bfloat16-product",),
    ),
    notes=(
        Note(
            "DequantizeLinear before MatMul is fused and then multiplies in int8 by default",
            "measured",
            PACKAGE,
        ),
    ),
    words=(
        "x86",
        "x86-64",
        "amd64",
        "arm",
        "arm64",
        "aarch64",
        "intel",
        "amd",
        "apple",
        "processor",
    ),
)
CUDA = Target(
    "cuda",
    "NVIDIA GPU",
    ("onnx", "compressed-tensors"),
    "read",
    provider="cuda",
    wheel="onnxruntime-gpu",
    versions="1.31, CUDA 13, cuDNN 9",
    recipe=GraphRecipe("contrib", "float16"),
    rules=GraphRules(checks=("half-attention",)),
    notes=(
        Note(
            "GroupQueryAttention and QMoE exist in float16 and bfloat16 only",
            "read",
            "ONNX Runtime, docs/OperatorKernels.md",
        ),
    ),
    words=("nvidia", "gpu", "geforce", "rtx", "onnxruntime-gpu"),
)
WEBGPU = Target(
    "webgpu",
    "GPU with Vulkan, Metal or D3D12",
    ("onnx",),
    "read",
    provider="webgpu",
    wheel="onnxruntime-webgpu",
    versions="1.27",
    recipe=GraphRecipe("contrib", bfloat16=False, fused_products=False),
    rules=GraphRules(
        refused=(
            Refusal("FusedMatMul", "no kernel", "use Transpose and MatMul"),
            Refusal("QuantizeLinear", "no kernel", "quantize weights only"),
            Refusal("DynamicQuantizeLinear", "no kernel", "quantize weights only"),
            Refusal("MatMulInteger", "no kernel", "use MatMulNBits"),
            Refusal("Attention", "no kernel for the standard one", "use GroupQueryAttention", ""),
        ),
        elements=NO_BFLOAT16,
    ),
    notes=(
        Note(
            "single operators were run on SwiftShader (a software GPU), no model",
            "measured",
            PACKAGE,
        ),
        Note(
            "GroupQueryAttention of several tokens was wrong there",
            "measured",
            PACKAGE,
        ),
    ),
    words=("gpu", "vulkan", "metal", "directx", "d3d12", "apple"),
)
OPENVINO = Target(
    "openvino",
    "Intel CPU and GPU",
    ("onnx", "compressed-tensors"),
    "measured",
    provider="openvino",
    wheel="onnxruntime-openvino",
    versions="1.24.1 (OpenVINO 2025.4)",
    recipe=GraphRecipe("std17-nbits", packed_embedding=False, bfloat16=False),
    rules=GraphRules(
        opsets=(7, 22),
        refused=(
            Refusal("GroupQueryAttention", "stays on the CPU provider", TO_STANDARD_ATTENTION),
            Refusal("RotaryEmbedding", "stays on the CPU provider", "rotate by Mul, Add and Sub"),
            Refusal(
                "RMSNormalization",
                "stays on the CPU provider",
                "use SimplifiedLayerNormalization, or its parts",
            ),
            Refusal(
                "GatherBlockQuantized",
                "stays on the CPU provider",
                "keep the embedding in float16, or in int8 per row",
            ),
            Refusal("QMoE", "stays on the CPU provider", "use MatMulNBits per expert"),
            Refusal("Attention", "session creation fails", TO_STANDARD_ATTENTION, ""),
        ),
        elements=NO_BFLOAT16,
        checks=("blocked-gather",),
    ),
    notes=(
        Note(
            "blocked DequantizeLinear before Gather gives values that are wrong by 47 %",
            "measured",
            PACKAGE,
        ),
        Note(
            "activations are rounded to int8 unless the option precision is ACCURACY",
            "measured",
            PACKAGE,
        ),
    ),
    words=("intel", "gpu", "intel-gpu", "intel-cpu", "arc"),
)
OPENVINO_NPU = Target(
    "openvino-npu",
    "Intel NPU (Core Ultra)",
    ("onnx",),
    "read",
    provider="openvino",
    options={"device_type": "NPU"},
    wheel="onnxruntime-openvino",
    versions="1.24.1 (OpenVINO 2025.4)",
    recipe=GraphRecipe(
        "std21",
        prefill_length=64,
        packed_embedding=False,
        bfloat16=False,
        explicit_zero_points=True,
        group_sizes=(-1,),
        symmetric=True,
    ),
    rules=GraphRules(
        opsets=(7, 22),
        refused=OPENVINO.rules.refused if OPENVINO.rules else (),
        elements=NO_BFLOAT16,
        zero_points="symmetric",
        fixed_shapes=True,
        checks=("blocked-gather", "whole-row-blocks"),
    ),
    notes=(
        Note(
            "symmetric int4 with one scale per row: groups took 4 s per token instead of 0.2",
            "read",
            "openvinotoolkit/openvino#29671, intel/onnxruntime#631",
        ),
    ),
    words=("intel", "npu", "intel-npu", "core-ultra"),
)
QNN = Target(
    "qnn",
    "Qualcomm NPU (Hexagon)",
    ("onnx",),
    "measured",
    provider="qnn",
    options={"backend_type": "htp"},
    wheel="onnxruntime-qnn",
    versions="2.7.0 beside onnxruntime 1.31",
    recipe=GraphRecipe(
        "std17-nbits",
        prefill_length=64,
        packed_embedding=False,
        bfloat16=False,
        group_sizes=(32, 64),
    ),
    rules=GraphRules(
        opsets=(11, 24),
        refused=(
            Refusal("GroupQueryAttention", "stays on the CPU", TO_STANDARD_ATTENTION),
            Refusal("GatherBlockQuantized", "stays on the CPU", "keep the embedding in float16"),
            Refusal("SkipSimplifiedLayerNormalization", "stays on the CPU", "use Add before it"),
            Refusal("QMoE", "stays on the CPU", "use MatMulNBits per expert"),
            Refusal(
                "RotaryEmbedding", "stays on the CPU", "rotate by Mul, Add, Sub", "com.microsoft"
            ),
            Refusal("DynamicQuantizeLinear", "stays on the CPU", "quantize weights only"),
            Refusal("MatMulInteger", "stays on the CPU", "use MatMulNBits"),
        ),
        elements=NO_BFLOAT16 | {"UINT16", "INT16"},
        zero_points="explicit",
        fixed_shapes=True,
        checks=("weight-only-dequantize", "nbits-blocks", "norm-axes"),
    ),
    notes=(
        Note("open dimensions put the whole graph on the CPU", "measured", PACKAGE),
        Note(
            "int4 DequantizeLinear per row without a zero point input is wrong by 300 %",
            "measured",
            PACKAGE,
        ),
        Note("MatMulNBits needs htp_arch 73 or later", "measured", PACKAGE),
        Note("MatMulNBits of an input with two dimensions stays on the CPU", "measured", PACKAGE),
        Note(
            "a norm in parts leaves float16's range (KL of SmolLM2-135M: 10.9 instead of 0.44)",
            "measured",
            PACKAGE,
        ),
        Note("SimplifiedLayerNormalization over four axes is wrong", "measured", PACKAGE),
    ),
    words=("qualcomm", "snapdragon", "hexagon", "npu", "htp"),
)
CANN_TARGET = Target(
    "cann",
    "Huawei Ascend",
    ("onnx", "compressed-tensors", "ascend"),
    "read",
    provider="cann",
    options={"precision_mode_v2": "origin"},
    wheel="onnxruntime-cann",
    versions="1.24.4, needs numpy below 2",
    recipe=GraphRecipe("std17", "float16", prefill_length=64),
    rules=GraphRules(
        opsets=(8, 18),
        domains=STANDARD,
        operators=CANN,
        refused=(
            Refusal("DequantizeLinear", "not in the list", TO_FLOAT16),
            Refusal("QuantizeLinear", "not in the list", TO_FLOAT16),
        ),
        elements=frozenset({"FLOAT", "FLOAT16", "INT64", "INT32", "INT8", "UINT8", "BOOL"}),
        fixed_shapes=True,
        graph_bytes=PROTOBUF_BYTES,
    ),
    notes=(
        Note(
            "the whole graph is claimed, known or not, and fails when it is first run",
            "read",
            "ONNX Runtime, cann_execution_provider.cc; microsoft/onnxruntime#20617",
        ),
        Note("every new shape is compiled again", "read", RUNTIME),
        Note("a graph is handed over in one protobuf message, at most 2 GB", "read", RUNTIME),
        Note(
            "without precision_mode_v2=origin float32 parts are computed in float16",
            "read",
            "Huawei's manual of ATC",
        ),
        Note(
            "int8 and int4 run on Ascend through vllm-ascend, from a compressed-tensors "
            "checkpoint; int8 with int8 activations also from AscendV1 (--format ascend)",
            "read",
            "vllm-ascend's manual and modelslim_config.py",
        ),
    ),
    words=("ascend", "huawei", "atlas", "npu", "910b", "310p"),
)
MUSA_TARGET = Target(
    "musa",
    "Moore Threads GPU",
    ("onnx", "compressed-tensors"),
    "read",
    provider="musa",
    wheel="onnxruntime_musa, built from its repository",
    versions="for onnxruntime 1.26, MUSA 5.1",
    recipe=GraphRecipe("std17", "float16", rotary_tables=True),
    rules=GraphRules(
        opsets=(13, 19),
        operators=MUSA,
        refused=(
            Refusal("Sin", "no kernel", "look cosine and sine up in a table"),
            Refusal("Cos", "no kernel", "look cosine and sine up in a table"),
            Refusal("DequantizeLinear", "no kernel", TO_FLOAT16),
            Refusal("LessOrEqual", "no kernel", "use GreaterOrEqual with its inputs exchanged"),
            Refusal("Attention", "no kernel for the standard one", TO_STANDARD_ATTENTION, ""),
        ),
        elements=frozenset(
            {"FLOAT", "FLOAT16", "BFLOAT16", "INT64", "INT32", "INT8", "UINT8", "BOOL"}
        ),
    ),
    notes=(
        Note(
            "kernels end at opset 19; a later version of an operator finds none",
            "read",
            "MooreThreads/onnxruntime-musa, musa/docs/supported_ops.md",
        ),
    ),
    words=("moore-threads", "moorethreads", "mthreads", "gpu"),
)
MIGRAPHX_TARGET = Target(
    "migraphx",
    "AMD GPU, Hygon DCU",
    ("onnx", "compressed-tensors"),
    "read",
    provider="migraphx",
    options={"migraphx_bf16_enable": "1"},
    wheel="onnxruntime-migraphx",
    versions="1.27.1, ROCm 7",
    recipe=GraphRecipe("std17-nbits", prefill_length=64, packed_embedding=False, bfloat16=False),
    rules=GraphRules(
        operators=MIGRAPHX,
        fixed_shapes=True,
        checks=("constant-shapes",),
        refused=(
            Refusal("GatherBlockQuantized", "not in the list", "keep the embedding in float16"),
            Refusal("RMSNormalization", "not in the list", "use SimplifiedLayerNormalization"),
        ),
    ),
    notes=(
        Note(
            "compiling a new shape takes 20 to 70 s, so shapes are fixed here",
            "read",
            "ROCm/AMDMIGraphX#4618",
        ),
        Note(
            "in float16 real activations leave the range, in bfloat16 they do not",
            "measured",
            "its own measurement on another provider (QNN's emulator)",
        ),
        Note("a graph with more than 10 unknown nodes is not taken at all", "read", RUNTIME),
        Note("that Hygon's builds behave the same", "guessed", "no machine, no public build"),
    ),
    words=("amd", "rocm", "radeon", "instinct", "hygon", "dcu", "gpu"),
)
TENSORRT = Target(
    "tensorrt",
    "NVIDIA GPU, compiled",
    ("onnx",),
    "guessed",
    provider="tensorrt",
    options={"trt_bf16_enable": "1", "trt_engine_cache_enable": "1"},
    wheel="onnxruntime-gpu",
    versions="1.31, TensorRT 10",
    recipe=GraphRecipe(
        "std21",
        prefill_length=64,
        packed_embedding=False,
        bfloat16=False,
        explicit_zero_points=True,
        symmetric=True,
    ),
    rules=GraphRules(
        opsets=(9, 25),
        domains=STANDARD,
        elements=NO_BFLOAT16 | {"BFLOAT16"},
        zero_points="symmetric",
        fixed_shapes=True,
    ),
    notes=(
        Note("the parser takes opset 9 to 25", "read", "NVIDIA's manual of TensorRT 11"),
        Note(
            "in float16 the squares of a norm leave the range, in bfloat16 they do not",
            "measured",
            "its own measurement on another provider (QNN's emulator)",
        ),
        Note(
            "zero points other than zero are not taken; an engine is built again for new shapes",
            "guessed",
            "no GPU was at hand",
        ),
    ),
    words=("nvidia", "trt", "gpu"),
)

ONNX_TARGETS = (
    CPU,
    CUDA,
    TENSORRT,
    OPENVINO,
    OPENVINO_NPU,
    QNN,
    WEBGPU,
    MIGRAPHX_TARGET,
    CANN_TARGET,
    MUSA_TARGET,
)
