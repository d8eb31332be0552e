"""Operators that providers have, where their sources list them. Names only, of every version."""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# ONNX Runtime, core/providers/cann/cann_graph.cc
CANN = _names(
    """Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization
    BitShift Cast Ceil Celu Clip Compress Concat Constant ConstantOfShape Conv ConvTranspose Cos
    Cosh CumSum DepthToSpace Det Div Dropout Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather
    GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
    GreaterOrEqual HardSigmoid HardSwish Hardmax Identity InstanceNormalization LRN LSTM LeakyRelu
    Less LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul Max MaxPool MaxRoiPool MaxUnpool
    Mean MeanVarianceNormalization Min Mod Mul Multinomial Neg NonMaxSuppression NonZero Not OneHot
    Or PRelu Pad Pow RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1
    ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign Round Scatter ScatterElements
    ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax SoftmaxCrossEntropyLoss
    Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh TfIdfVectorizer ThresholdedRelu
    Tile TopK Transpose Unsqueeze Where Xor"""
)

# MooreThreads/onnxruntime-musa, musa/docs/supported_ops.md; the last line came with later versions.
MUSA = _names(
    """Abs Add And BatchNormalization BitwiseAnd Cast Concat ConstantOfShape Conv Div Einsum Equal
    Erf Exp Expand FusedGemm FusedMatMul Gather Gemm Greater GreaterOrEqual IsNaN LeakyRelu Less Log
    MatMul Max Min Mul Neg NonZero Not Or Pad Pow RandomUniform RandomUniformLike Reciprocal
    ReduceMax ReduceMean ReduceProd ReduceSum ReduceSumSquare Relu Reshape Round Shape Sigmoid Sign
    Slice Softmax Softplus Split Sqrt Squeeze Sub Sum Tanh Tile Transpose Unsqueeze Where
    Attention If LayerNormalization Loop MultiHeadAttention Range TopK"""
)

# ONNX Runtime, core/providers/migraphx/migraphx_execution_provider.cc
MIGRAPHX = _names(
    """ATen Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool
    BatchNormalization BiasGelu Cast Ceil Celu Clip Concat Constant ConstantFill ConstantOfShape
    Conv ConvInteger ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout
    DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike FastGelu Flatten Floor GRU Gather
    GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual
    GroupNorm GroupNormalization GroupQueryAttention HardSigmoid HardSwish Identity If ImageScaler
    InstanceNormalization IsNan LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log
    LogSoftmax Loop LpNormalization MatMul MatMulInteger MatMulNBits Max MaxPool Mean Min Mod Mul
    MultiHeadAttention Multinomial Neg NegativeLogLikelihoodLoss NhwcConv NonMaxSuppression NonZero
    Not OneHot Or PRelu Pad Pow QLinearAdd QLinearConv QLinearMatMul QuantizeLinear QuickGelu RNN
    RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2
    ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
    Relu Reshape Resize ReverseSequence Roialign RotaryEmbedding Round Scatter ScatterElements
    ScatterND Selu Shape Sigmoid Sign SimplifiedLayerNormalization Sin Sinh Size
    SkipLayerNormalization SkipSimplifiedLayerNormalization Slice Softmax SoftmaxCrossEntropyLoss
    Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK
    Transpose Trilu Unsqueeze Upsample Where Xor"""
)
