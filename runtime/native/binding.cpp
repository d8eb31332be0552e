// The Python module dsconv.runtime._native, in the stable ABI of Python 3.10.
//
// convert/formats/native/file.py has checked the file before anything comes here; what could touch memory
// outside of it is checked once more.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine_object.h"
#include "linear/binding.h"
#include "sequences_binding.h"

namespace dsconv {
namespace {

const LinearKernels* kernels_named(const std::string& name) {
    if (name.empty()) return &best_linear_kernels();
    for (const Isa isa : all_isas) {
        const LinearKernels* kernels = linear_kernels(isa);
        if (kernels && name == kernels->name && vector_kernels(isa)) return kernels;
    }
    throw std::invalid_argument("kernels '" + name + "' do not run on this machine");
}

Precision precision_named(const std::string& name) {
    if (name == "int8") return Precision::int8;
    if (name == "mixed") return Precision::mixed;
    if (name == "int16") return Precision::int16;
    if (name == "own") return Precision::own;
    throw std::invalid_argument("precision '" + name + "' is not known");
}

CacheType cache_named(const std::string& name) {
    if (name == "fp16") return CacheType::half;
    if (name == "int8") return CacheType::int8;
    if (name == "fp32") return CacheType::float32;
    throw std::invalid_argument("cache '" + name + "' is not known");
}

int engine_init(PyObject* object, PyObject* arguments, PyObject*) {
    auto* self = reinterpret_cast<EngineObject*>(object);
    const char *path, *cache, *kernels, *decode, *prefill, *score;
    unsigned long long size;
    PyObject *buffers, *steps;
    int threads;
    long long cache_bytes = 0;
    if (!PyArg_ParseTuple(arguments, "yKO!O!isssss|L", &path, &size, &PyList_Type, &buffers,
                          &PyList_Type, &steps, &threads, &cache, &kernels, &decode, &prefill,
                          &score, &cache_bytes)) {
        return -1;
    }
    const bool done = guarded([&] {
        auto session = std::make_unique<Session>();
        session->file = std::make_unique<MappedFile>(path);
        if (session->file->size() != size) throw std::invalid_argument("the file has changed");
        EngineOptions options;
        options.threads = threads;
        options.cache = cache_named(cache);
        options.kernels = kernels_named(kernels);
        if (cache_bytes < 0) throw std::invalid_argument("the cache has a negative size");
        options.cache_bytes = cache_bytes;
        options.precisions = {precision_named(decode), precision_named(prefill),
                              precision_named(score)};
        session->engine = std::make_unique<Engine>(read_program(buffers, steps, *session->file),
                                                   options);
        delete self->session;
        self->session = session.release();
    });
    return done ? 0 : -1;
}

void engine_dealloc(PyObject* object) {
    delete reinterpret_cast<EngineObject*>(object)->session;
    PyTypeObject* type = Py_TYPE(object);
    auto free = reinterpret_cast<freefunc>(PyType_GetSlot(type, Py_tp_free));
    free(object);
    Py_DECREF(type);
}

// forward(tokens: list[int], logits: bytearray | None, offset: int, all: bool): float32 logits are
// written into the bytearray from the byte `offset` on.
PyObject* engine_forward(PyObject* object, PyObject* arguments) {
    PyObject *list, *logits;
    long long offset;
    int all;
    if (!PyArg_ParseTuple(arguments, "O!OLp", &PyList_Type, &list, &logits, &offset, &all)) {
        return nullptr;
    }
    if (logits != Py_None && !PyObject_TypeCheck(logits, &PyByteArray_Type)) {
        PyErr_SetString(PyExc_TypeError, "logits go into a bytearray");
        return nullptr;
    }
    const bool done = guarded([&] {
        Session& session = session_of(object);
        Engine& engine = *session.engine;
        const std::vector<int64_t> tokens = read_tokens(list, engine.vocabulary());
        float* out = nullptr;
        if (logits != Py_None) {
            const auto rows = all ? static_cast<int64_t>(tokens.size()) : 1;
            out = logits_place(logits, offset, rows, engine.vocabulary());
        }
        run_alone(session, [&] { engine.forward(tokens, out, all != 0); });
    });
    if (!done) return nullptr;
    Py_RETURN_NONE;
}

PyObject* engine_reset(PyObject* object, PyObject*) {
    const bool done = guarded([&] { idle_engine(object).reset(); });
    if (!done) return nullptr;
    Py_RETURN_NONE;
}

PyObject* engine_truncate(PyObject* object, PyObject* argument) {
    const bool done = guarded([&] {
        Engine& engine = idle_engine(object);
        const long long length = PyLong_AsLongLong(argument);
        if (length < 0) throw std::invalid_argument("the length is no count of tokens");
        engine.truncate(length);
    });
    if (!done) return nullptr;
    Py_RETURN_NONE;
}

template <class Get>
PyObject* getter(PyObject* object, Get&& get) {
    PyObject* result = nullptr;
    guarded([&] { result = get(*session_of(object).engine); });
    return result;
}

PyObject* get_position(PyObject* object, void*) {
    return getter(object, [](Engine& e) { return PyLong_FromLongLong(e.position()); });
}
PyObject* get_threads(PyObject* object, void*) {
    return getter(object, [](Engine& e) { return PyLong_FromLong(e.threads()); });
}
PyObject* get_block_bytes(PyObject* object, void*) {
    return getter(object, [](Engine& e) { return PyLong_FromLongLong(e.block_bytes()); });
}
PyObject* get_limit_blocks(PyObject* object, void*) {
    return getter(object, [](Engine& e) { return PyLong_FromLongLong(e.limit_blocks()); });
}
PyObject* get_used_blocks(PyObject* object, void*) {
    return getter(object, [](Engine& e) { return PyLong_FromLongLong(e.used_blocks()); });
}
PyObject* get_kernels(PyObject* object, void*) {
    return getter(object, [](Engine& e) { return PyUnicode_FromString(e.kernels()); });
}

// The names of all kernels that this machine runs, the portable ones first.
PyObject* available_kernels(PyObject*, PyObject*) {
    PyObject* names = PyList_New(0);
    if (!names) return nullptr;
    for (const Isa isa : all_isas) {
        const LinearKernels* kernels = linear_kernels(isa);
        if (!kernels || !vector_kernels(isa)) continue;
        PyObject* name = PyUnicode_FromString(kernels->name);
        const bool appended = name && PyList_Append(names, name) == 0;
        Py_XDECREF(name);
        if (!appended) {
            Py_DECREF(names);
            return nullptr;
        }
    }
    return names;
}

PyMethodDef engine_methods[] = {
    {"forward", engine_forward, METH_VARARGS, "Append tokens; write logits into a bytearray."},
    {"reset", engine_reset, METH_NOARGS, "Forget the sequence."},
    {"truncate", engine_truncate, METH_O, "Keep the first tokens."},
    {"add", engine_add, METH_NOARGS, "A new sequence -> its number."},
    {"fork", engine_fork, METH_VARARGS, "A sequence that begins like another one."},
    {"drop", engine_drop, METH_O, "Forget a sequence."},
    {"truncate_sequence", engine_truncate_sequence, METH_VARARGS, "Keep a sequence's first tokens."},
    {"length", engine_length, METH_O, "Tokens of a sequence in the cache."},
    {"missing_blocks", engine_missing_blocks, METH_O, "Blocks that a pass would take."},
    {"step", engine_step, METH_VARARGS, "A pass over pieces of many sequences."},
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef engine_properties[] = {
    {"position", get_position, nullptr, "Tokens in the cache.", nullptr},
    {"threads", get_threads, nullptr, "Threads that work.", nullptr},
    {"block_bytes", get_block_bytes, nullptr, "Bytes of a block of the cache.", nullptr},
    {"limit_blocks", get_limit_blocks, nullptr, "Blocks of the cache at most, or 0.", nullptr},
    {"used_blocks", get_used_blocks, nullptr, "Blocks that sequences have.", nullptr},
    {"kernels", get_kernels, nullptr, "The instruction set in use.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr},
};

PyType_Slot engine_slots[] = {
    {Py_tp_init, reinterpret_cast<void*>(engine_init)},
    {Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
    {Py_tp_dealloc, reinterpret_cast<void*>(engine_dealloc)},
    {Py_tp_methods, engine_methods},
    {Py_tp_getset, engine_properties},
    {0, nullptr},
};

PyType_Spec engine_spec = {"dsconv.runtime._native.Engine", sizeof(EngineObject), 0,
                           Py_TPFLAGS_DEFAULT, engine_slots};

PyMethodDef module_methods[] = {
    {"available_kernels", available_kernels, METH_NOARGS, "Instruction sets that run here."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_native", "The native engine.", 0, module_methods, nullptr, nullptr,
    nullptr, nullptr,
};

}  // namespace
}  // namespace dsconv

PyMODINIT_FUNC PyInit__native() {
    PyObject* module = PyModule_Create(&dsconv::module);
    if (!module) return nullptr;
    PyObject* type = PyType_FromSpec(&dsconv::engine_spec);
    if (!type || PyModule_AddFunctions(module, dsconv::linear_methods) < 0 ||
        PyModule_AddObject(module, "Engine", type) < 0 ||
        PyModule_AddIntConstant(module, "CHUNK_TOKENS", dsconv::Engine::chunk_tokens) < 0 ||
        PyModule_AddIntConstant(module, "BLOCK_POSITIONS", dsconv::segment_positions) < 0) {
        Py_XDECREF(type);
        Py_DECREF(module);
        return nullptr;
    }
    return module;
}
