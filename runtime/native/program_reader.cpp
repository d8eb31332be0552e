#include "program_reader.h"

#include <stdexcept>
#include <string>

namespace dsconv {
namespace {

void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(std::string("the program is wrong: ") + what);
}

void require_python(bool condition) {
    if (!condition) throw PythonError();
}

class Reader {
   public:
    Reader(const MappedFile& file, Program& program) : file_(file), program_(program) {}

    void read(PyObject* buffers, PyObject* steps) {
        for_each(buffers, [&](PyObject* item) {
            program_.buffer_widths.push_back(PyLong_AsLongLong(item));
            require_python(!PyErr_Occurred());
            require(program_.buffer_widths.back() > 0, "a buffer's width");
        });
        for_each(steps, [&](PyObject* item) { read_step(item); });
        require(program_.vocabulary > 0, "no head");
    }

   private:
    template <class Work>
    static void for_each(PyObject* list, Work&& work) {
        const Py_ssize_t count = PyList_Size(list);
        require_python(count >= 0);
        for (Py_ssize_t i = 0; i < count; ++i) work(PyList_GetItem(list, i));
    }

    void read_step(PyObject* step) {
        const char* op;
        PyObject* content;
        require_python(PyArg_ParseTuple(step, "sO!", &op, &PyTuple_Type, &content));
        const std::string name = op;
        if (name == "embedding") return read_embedding(content);
        if (name == "norm") return read_norm_step(content);
        if (name == "linear") return read_linear(content);
        if (name == "attention") return read_attention(content);
        if (name == "head") return read_head(content);
        require(false, "an unknown step");
    }

    int64_t width(BufferIndex index) const {
        require(index >= 0 && index < static_cast<int64_t>(program_.buffer_widths.size()),
                "a buffer's number");
        return program_.buffer_widths[static_cast<size_t>(index)];
    }

    // float32 values at a byte offset of the file.
    const float* floats(long long offset, int64_t count) const {
        require(offset >= 0 && offset % 4 == 0, "the place of a vector");
        const auto start = static_cast<uint64_t>(offset);
        require(count >= 0 && start <= file_.size() &&
                    static_cast<uint64_t>(count) <= (file_.size() - start) / sizeof(float),
                "a vector that does not lie in the file");
        return reinterpret_cast<const float*>(file_.data() + start);
    }

    LinearView view(PyObject* tuple) const {
        long long kind, rows, cols, group_size, offset;
        int zero_points;
        require_python(PyArg_ParseTuple(tuple, "LLLLpL", &kind, &rows, &cols, &group_size,
                                        &zero_points, &offset));
        LinearView result;
        result.kind = static_cast<LinearKind>(kind);
        result.rows = rows;
        result.cols = cols;
        result.group_size = group_size;
        result.zero_points = zero_points != 0;
        const uint64_t bytes = linear_bytes(result);
        require(bytes > 0, "an unknown kind of matrix");
        require(offset >= 0 && offset % 64 == 0, "the place of a matrix");
        const auto start = static_cast<uint64_t>(offset);
        require(start <= file_.size() && bytes <= file_.size() - start,
                "a matrix that does not lie in the file");
        result.data = file_.data() + start;
        return result;
    }

    Norm norm(PyObject* tuple, int64_t row_width) const {
        long long offset, heads;
        double epsilon;
        require_python(PyArg_ParseTuple(tuple, "LdL", &offset, &epsilon, &heads));
        require(heads > 0 && row_width % heads == 0, "the heads of a norm");
        Norm result;
        result.size = row_width / heads;
        result.heads = heads;
        result.epsilon = static_cast<float>(epsilon);
        result.gain = floats(offset, result.size);
        return result;
    }

    void read_embedding(PyObject* content) {
        PyObject* table;
        long long output;
        require_python(PyArg_ParseTuple(content, "OL", &table, &output));
        const EmbeddingStep step{view(table), output};
        require(step.table.cols == width(output), "the width of an embedding");
        embedding_rows_ = step.table.rows;
        program_.steps.emplace_back(step);
    }

    void read_norm_step(PyObject* content) {
        PyObject* tuple;
        long long buffer;
        require_python(PyArg_ParseTuple(content, "OL", &tuple, &buffer));
        program_.steps.emplace_back(NormStep{norm(tuple, width(buffer)), buffer});
    }

    void read_linear(PyObject* content) {
        PyObject *norm_tuple, *matrices;
        long long input, normed, combine;
        require_python(PyArg_ParseTuple(content, "LOLO!L", &input, &norm_tuple, &normed,
                                        &PyList_Type, &matrices, &combine));
        LinearStep step;
        step.input = input;
        step.has_norm = norm_tuple != Py_None;
        if (step.has_norm) {
            step.norm = norm(norm_tuple, width(input));
            step.normed = normed;
            require(width(normed) == width(input) && normed != input, "the place of a norm");
        }
        for_each(matrices, [&](PyObject* item) {
            PyObject* tuple;
            long long bias, output;
            require_python(PyArg_ParseTuple(item, "OLL", &tuple, &bias, &output));
            Matrix matrix;
            matrix.view = view(tuple);
            matrix.bias = bias < 0 ? nullptr : floats(bias, matrix.view.rows);
            matrix.output = output;
            require(matrix.view.cols == width(input), "the inputs of a matrix");
            require(matrix.view.rows == width(output), "the outputs of a matrix");
            require(output != input && !(step.has_norm && output == normed),
                    "the place of a product");
            step.matrices.push_back(matrix);
        });
        require(!step.matrices.empty(), "no matrices");
        require(combine >= 0 && combine <= static_cast<int64_t>(Combine::silu_multiply),
                "how results are combined");
        step.combine = static_cast<Combine>(combine);
        if (step.combine == Combine::silu_multiply) {
            require(step.matrices.size() == 2 &&
                        step.matrices[0].view.rows == step.matrices[1].view.rows &&
                        step.matrices[0].output != step.matrices[1].output,
                    "gate and up");
        }
        program_.steps.emplace_back(std::move(step));
    }

    void read_attention(PyObject* content) {
        long long query, key, value, output, layer, heads, kv_heads, head_dim, frequencies, bias;
        double factor;
        require_python(PyArg_ParseTuple(content, "LLLLLLLLLdL", &layer, &query, &key, &value,
                                        &output, &heads, &kv_heads, &head_dim, &frequencies,
                                        &factor, &bias));
        require(heads > 0 && kv_heads > 0 && heads % kv_heads == 0 && heads / kv_heads <= 256,
                "the heads of an attention");
        require(head_dim > 0 && head_dim % 2 == 0, "the size of a head");
        require(layer == layers_, "the order of the layers");
        ++layers_;
        require(width(query) % heads == 0 && width(query) / heads == head_dim &&
                    width(output) == width(query) && width(key) % kv_heads == 0 &&
                    width(key) / kv_heads == head_dim && width(value) == width(key),
                "the widths of an attention");
        require(query != output && key != output && value != output && query != key &&
                    key != value,
                "the places of an attention");
        AttentionStep step;
        step.query = query;
        step.key = key;
        step.value = value;
        step.output = output;
        step.layer = layer;
        step.heads = heads;
        step.kv_heads = kv_heads;
        step.head_dim = head_dim;
        step.frequencies = floats(frequencies, head_dim / 2);
        step.rotary_factor = static_cast<float>(factor);
        step.key_bias = bias < 0 ? nullptr : floats(bias, kv_heads * head_dim);
        program_.steps.emplace_back(step);
    }

    void read_head(PyObject* content) {
        PyObject *norm_tuple, *matrix;
        long long input, normed;
        require_python(PyArg_ParseTuple(content, "LOLO", &input, &norm_tuple, &normed, &matrix));
        HeadStep step{input, norm(norm_tuple, width(input)), normed, view(matrix)};
        require(width(normed) == width(input) && normed != input, "the place of a norm");
        require(step.matrix.cols == width(input), "the inputs of the head");
        require(step.matrix.rows <= embedding_rows_, "a head with more tokens than the embedding");
        require(program_.vocabulary == 0, "two heads");
        program_.vocabulary = step.matrix.rows;
        program_.steps.emplace_back(step);
    }

    const MappedFile& file_;
    Program& program_;
    int64_t embedding_rows_ = 0;
    int64_t layers_ = 0;
};

}  // namespace

Program read_program(PyObject* buffers, PyObject* steps, const MappedFile& file) {
    Program program;
    Reader(file, program).read(buffers, steps);
    return program;
}

}  // namespace dsconv
