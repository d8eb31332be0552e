#include "linear/binding.h"

#include <cstring>
#include <initializer_list>
#include <memory>
#include <new>
#include <string>

#include "linear/linear.h"

namespace dsconv {
namespace {

struct AlignedFree {
    void operator()(uint8_t* p) const { ::operator delete(p, std::align_val_t{64}); }
};
using AlignedBytes = std::unique_ptr<uint8_t, AlignedFree>;

AlignedBytes aligned(size_t size) {
    return AlignedBytes(static_cast<uint8_t*>(::operator new(size, std::align_val_t{64})));
}

// The matrix of a call: kind, rows, cols, group_size, zero_points.
struct Matrix {
    unsigned kind;
    long long rows, cols, group_size;
    int zero_points;

    LinearView view() const {
        return {static_cast<LinearKind>(kind), rows, cols, group_size, zero_points != 0, nullptr};
    }
};

const LinearKernels* kernels_named(const char* name) {
    for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx_vnni, Isa::avx512_vnni,
                          Isa::amx_int8, Isa::neon_dotprod}) {
        const LinearKernels* kernels = linear_kernels(isa);
        if (kernels && std::strcmp(name, kernels->name) == 0) return kernels;
    }
    PyErr_Format(PyExc_ValueError, "kernels '%s' do not run here", name);
    return nullptr;
}

// A copy of the bytes where kernels want them; null with an exception if they do not fit.
AlignedBytes weights_of(const LinearView& view, const char* data, Py_ssize_t size) {
    const uint64_t needed = linear_bytes(view);
    if (needed == 0 || static_cast<uint64_t>(size) != needed) {
        PyErr_Format(PyExc_ValueError, "a matrix of %zd bytes where %llu are needed", size,
                     static_cast<unsigned long long>(needed));
        return nullptr;
    }
    AlignedBytes copy = aligned(needed);
    std::memcpy(copy.get(), data, needed);
    return copy;
}

// linear_bytes(kind, rows, cols, group_size, zero_points) -> int, 0 for what is no matrix
PyObject* py_linear_bytes(PyObject*, PyObject* arguments) {
    Matrix matrix;
    if (!PyArg_ParseTuple(arguments, "ILLLp", &matrix.kind, &matrix.rows, &matrix.cols,
                          &matrix.group_size, &matrix.zero_points)) {
        return nullptr;
    }
    return PyLong_FromUnsignedLongLong(linear_bytes(matrix.view()));
}

// dequantize_row(kind, rows, cols, group_size, zero_points, data, row) -> bytes of float32
PyObject* py_dequantize_row(PyObject*, PyObject* arguments) {
    Matrix matrix;
    const char* data;
    Py_ssize_t size;
    long long row;
    if (!PyArg_ParseTuple(arguments, "ILLLpy#L", &matrix.kind, &matrix.rows, &matrix.cols,
                          &matrix.group_size, &matrix.zero_points, &data, &size, &row)) {
        return nullptr;
    }
    LinearView view = matrix.view();
    const AlignedBytes weights = weights_of(view, data, size);
    if (!weights) return nullptr;
    view.data = weights.get();
    PyObject* out = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(view.cols * 4));
    if (out) dequantize_row(view, row, reinterpret_cast<float*>(PyBytes_AsString(out)));
    return out;
}

// linear(kernels, kind, rows, cols, group_size, zero_points, data, precision, tokens, x, bias, out,
//        accumulate, first_block, last_block): x bytes, bias bytes (or empty), out a bytearray, all
// of float32. precision: 0 int8, 1 mixed, 2 int16, 4 own.
PyObject* py_linear(PyObject*, PyObject* arguments) {
    Matrix matrix;
    const char *name, *data, *x, *bias;
    Py_ssize_t size, x_size, bias_size;
    PyObject* out;
    unsigned precision;
    long long tokens, first, last;
    int accumulate;
    if (!PyArg_ParseTuple(arguments, "sILLLpy#ILy#y#OpLL", &name, &matrix.kind, &matrix.rows,
                          &matrix.cols, &matrix.group_size, &matrix.zero_points, &data, &size,
                          &precision, &tokens, &x, &x_size, &bias, &bias_size, &out, &accumulate,
                          &first, &last)) {
        return nullptr;
    }
    const LinearKernels* kernels = kernels_named(name);
    if (!kernels) return nullptr;
    LinearView view = matrix.view();
    const AlignedBytes weights = weights_of(view, data, size);
    if (!weights) return nullptr;
    view.data = weights.get();
    if (x_size != tokens * view.cols * 4 || PyByteArray_Size(out) != tokens * view.rows * 4 ||
        (bias_size != 0 && bias_size != view.rows * 4) || precision == 3 || precision > 4 || first < 0 ||
        last > linear_blocks_of(view)) {
        PyErr_SetString(PyExc_ValueError, "arguments of sizes that do not fit the matrix");
        return nullptr;
    }
    const ActivationShape shape =
        activation_shape(*kernels, view, tokens, static_cast<Precision>(precision));
    const AlignedBytes workspace = aligned(activation_bytes(shape));
    const Activations activations = place_activations(shape, workspace.get());
    kernels->quantize(reinterpret_cast<const float*>(x), view.cols, activations, 0,
                      activation_tiles(shape));
    Epilogue epilogue;
    if (bias_size) epilogue.bias = reinterpret_cast<const float*>(bias);
    epilogue.accumulate = accumulate != 0;
    const AlignedBytes scratch = aligned(kernels->scratch_bytes);
    kernels->linear(view, activations, reinterpret_cast<float*>(PyByteArray_AsString(out)),
                    view.rows, first, last, epilogue, scratch.get());
    Py_RETURN_NONE;
}

}  // namespace

PyMethodDef linear_methods[] = {
    {"linear_bytes", py_linear_bytes, METH_VARARGS, "Bytes of a packed matrix."},
    {"dequantize_row", py_dequantize_row, METH_VARARGS, "A row of a packed matrix."},
    {"linear", py_linear, METH_VARARGS, "Some blocks of a matrix product."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace dsconv
