// The Python module dsconv.runtime._native, in the stable ABI of Python 3.10.
//
// convert/formats/native/file.py has checked the file before anything comes here; what could touch memory
// outside of it is checked once more.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.h"
#include "linear/binding.h"
#include "memory.h"
#include "program_reader.h"

namespace dsconv {
namespace {

// What a Python `Engine` owns.
struct Session {
    std::unique_ptr<MappedFile> file;
    std::unique_ptr<Engine> engine;
    std::atomic<bool> busy{false};
};

struct EngineObject {
    PyObject_HEAD
    Session* session;
};

// Runs `work`, turning C++ exceptions into Python ones; false if there was one.
template <class Work>
bool guarded(Work&& work) {
    try {
        work();
        return true;
    } catch (const PythonError&) {
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_ValueError, error.what());
    }
    return false;
}

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
    throw std::invalid_argument("precision '" + name + "' is not known");
}

int engine_init(PyObject* object, PyObject* arguments, PyObject*) {
    auto* self = reinterpret_cast<EngineObject*>(object);
    const char *path, *cache, *kernels, *decode, *prefill, *score;
    unsigned long long size;
    PyObject *buffers, *steps;
    int threads;
    if (!PyArg_ParseTuple(arguments, "yKO!O!isssss", &path, &size, &PyList_Type, &buffers,
                          &PyList_Type, &steps, &threads, &cache, &kernels, &decode, &prefill,
                          &score)) {
        return -1;
    }
    const bool done = guarded([&] {
        auto session = std::make_unique<Session>();
        session->file = std::make_unique<MappedFile>(path);
        if (session->file->size() != size) throw std::invalid_argument("the file has changed");
        EngineOptions options;
        options.threads = threads;
        options.cache = std::string(cache) == "int8" ? CacheType::int8 : CacheType::half;
        options.kernels = kernels_named(kernels);
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

Session& session_of(PyObject* object) {
    Session* session = reinterpret_cast<EngineObject*>(object)->session;
    if (!session) throw std::invalid_argument("the engine was not initialised");
    return *session;
}

std::vector<int64_t> read_tokens(PyObject* list, int64_t vocabulary) {
    const Py_ssize_t count = PyList_Size(list);
    if (count < 0) throw PythonError();
    if (count < 1 || count > Engine::chunk_tokens) {
        throw std::invalid_argument("a pass takes 1 to " + std::to_string(Engine::chunk_tokens) +
                                    " tokens");
    }
    std::vector<int64_t> tokens;
    for (Py_ssize_t i = 0; i < count; ++i) {
        const long long token = PyLong_AsLongLong(PyList_GetItem(list, i));
        if (token == -1 && PyErr_Occurred()) throw PythonError();
        if (token < 0 || token >= vocabulary) {
            throw std::invalid_argument("token " + std::to_string(token) +
                                        " is not in the vocabulary");
        }
        tokens.push_back(token);
    }
    return tokens;
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
            const Py_ssize_t size = PyByteArray_Size(logits);
            const auto rows = all ? static_cast<int64_t>(tokens.size()) : 1;
            const int64_t needed = rows * engine.vocabulary() * static_cast<int64_t>(sizeof(float));
            if (offset < 0 || offset % 4 || offset > size || needed > size - offset) {
                throw std::invalid_argument("the logits do not fit");
            }
            out = reinterpret_cast<float*>(PyByteArray_AsString(logits) + offset);
        }
        if (session.busy.exchange(true)) throw std::invalid_argument("the engine is busy");
        bool enough_memory = true;
        // References keep the arguments alive while others run Python.
        Py_BEGIN_ALLOW_THREADS
        try {
            engine.forward(tokens, out, all != 0);
        } catch (const std::bad_alloc&) {
            enough_memory = false;
        }
        Py_END_ALLOW_THREADS
        session.busy = false;
        if (!enough_memory) throw std::bad_alloc();
    });
    if (!done) return nullptr;
    Py_RETURN_NONE;
}

PyObject* engine_reset(PyObject* object, PyObject*) {
    const bool done = guarded([&] {
        Session& session = session_of(object);
        if (session.busy) throw std::invalid_argument("the engine is busy");
        session.engine->reset();
    });
    if (!done) return nullptr;
    Py_RETURN_NONE;
}

PyObject* engine_truncate(PyObject* object, PyObject* argument) {
    const bool done = guarded([&] {
        Session& session = session_of(object);
        if (session.busy) throw std::invalid_argument("the engine is busy");
        const long long length = PyLong_AsLongLong(argument);
        if (length < 0) throw std::invalid_argument("the length is no count of tokens");
        session.engine->truncate(length);
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
    {nullptr, nullptr, 0, nullptr},
};

PyGetSetDef engine_properties[] = {
    {"position", get_position, nullptr, "Tokens in the cache.", nullptr},
    {"threads", get_threads, nullptr, "Threads that work.", nullptr},
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
        PyModule_AddIntConstant(module, "CHUNK_TOKENS", dsconv::Engine::chunk_tokens) < 0) {
        Py_XDECREF(type);
        Py_DECREF(module);
        return nullptr;
    }
    return module;
}
