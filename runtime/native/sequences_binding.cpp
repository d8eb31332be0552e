#include "sequences_binding.h"

#include <algorithm>

#include "engine_object.h"

namespace dsconv {
namespace {

constexpr long long largest_count = int64_t{1} << 40;

int64_t number_of(PyObject* value) {
    const long long number = PyLong_AsLongLong(value);
    if (number == -1 && PyErr_Occurred()) throw PythonError();
    return number;
}

int64_t sequence_of(const Engine& engine, int64_t number) {
    if (!engine.has(number)) {
        throw std::invalid_argument("there is no sequence " + std::to_string(number));
    }
    return number;
}

int64_t count_of(long long count) {
    if (count < 0 || count > largest_count) {
        throw std::invalid_argument("the length is no count of tokens");
    }
    return count;
}

Want want_of(int64_t number) {
    if (number < 0 || number > 2) throw std::invalid_argument("logits are wanted 0, 1 or 2");
    return static_cast<Want>(number);
}

// A list of tuples (sequence, tokens, want).
std::vector<Piece> read_pieces(PyObject* list, const Engine& engine) {
    if (!PyList_Check(list)) throw std::invalid_argument("pieces come in a list");
    std::vector<Piece> pieces;
    std::vector<int64_t> numbers;
    int64_t tokens = 0;
    for (Py_ssize_t i = 0; i < PyList_Size(list); ++i) {
        PyObject* item = PyList_GetItem(list, i);
        if (!PyTuple_Check(item) || PyTuple_Size(item) != 3 ||
            !PyList_Check(PyTuple_GetItem(item, 1))) {
            throw std::invalid_argument("a piece is (sequence, tokens, want)");
        }
        Piece piece;
        piece.sequence = sequence_of(engine, number_of(PyTuple_GetItem(item, 0)));
        piece.tokens = read_tokens(PyTuple_GetItem(item, 1), engine.vocabulary());
        piece.want = want_of(number_of(PyTuple_GetItem(item, 2)));
        tokens += static_cast<int64_t>(piece.tokens.size());
        numbers.push_back(piece.sequence);
        pieces.push_back(std::move(piece));
    }
    std::sort(numbers.begin(), numbers.end());
    if (std::adjacent_find(numbers.begin(), numbers.end()) != numbers.end()) {
        throw std::invalid_argument("two pieces of one sequence");
    }
    if (pieces.empty() || tokens > Engine::chunk_tokens) {
        throw std::invalid_argument("a pass takes 1 to " + std::to_string(Engine::chunk_tokens) +
                                    " tokens");
    }
    return pieces;
}

int64_t rows_wanted(const std::vector<Piece>& pieces) {
    int64_t rows = 0;
    for (const Piece& piece : pieces) {
        if (piece.want == Want::last) rows += 1;
        if (piece.want == Want::every) rows += static_cast<int64_t>(piece.tokens.size());
    }
    return rows;
}

// Runs `work`, which gives a number or (by -1) nothing.
template <class Work>
PyObject* result_of(Work&& work) {
    int64_t number = -1;
    if (!guarded([&] { number = work(); })) return nullptr;
    if (number < 0) Py_RETURN_NONE;
    return PyLong_FromLongLong(number);
}

}  // namespace

PyObject* engine_add(PyObject* object, PyObject*) {
    return result_of([&] { return idle_engine(object).add(); });
}

PyObject* engine_fork(PyObject* object, PyObject* arguments) {
    long long number, length;
    if (!PyArg_ParseTuple(arguments, "LL", &number, &length)) return nullptr;
    return result_of([&] {
        Engine& engine = idle_engine(object);
        return engine.fork(sequence_of(engine, number), count_of(length));
    });
}

PyObject* engine_drop(PyObject* object, PyObject* number) {
    return result_of([&]() -> int64_t {
        Engine& engine = idle_engine(object);
        engine.drop(sequence_of(engine, number_of(number)));
        return -1;
    });
}

PyObject* engine_truncate_sequence(PyObject* object, PyObject* arguments) {
    long long number, length;
    if (!PyArg_ParseTuple(arguments, "LL", &number, &length)) return nullptr;
    return result_of([&]() -> int64_t {
        Engine& engine = idle_engine(object);
        engine.truncate(sequence_of(engine, number), count_of(length));
        return -1;
    });
}

PyObject* engine_length(PyObject* object, PyObject* number) {
    return result_of([&] {
        Engine& engine = idle_engine(object);
        return engine.length(sequence_of(engine, number_of(number)));
    });
}

PyObject* engine_missing_blocks(PyObject* object, PyObject* list) {
    return result_of([&] {
        Engine& engine = idle_engine(object);
        return engine.missing_blocks(read_pieces(list, engine));
    });
}

// step(pieces, logits: bytearray): logits of every token that they are wanted for, in order.
PyObject* engine_step(PyObject* object, PyObject* arguments) {
    PyObject *list, *logits;
    if (!PyArg_ParseTuple(arguments, "OO!", &list, &PyByteArray_Type, &logits)) return nullptr;
    return result_of([&]() -> int64_t {
        Session& session = session_of(object);
        Engine& engine = *session.engine;
        const std::vector<Piece> pieces = read_pieces(list, engine);
        float* out = logits_place(logits, 0, rows_wanted(pieces), engine.vocabulary());
        run_alone(session, [&] { engine.step(pieces, out); });
        return -1;
    });
}

}  // namespace dsconv
