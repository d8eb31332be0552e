// What a Python `Engine` is, for the files that give it methods.
#pragma once

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
#include "memory.h"
#include "program_reader.h"

namespace dsconv {

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

inline Session& session_of(PyObject* object) {
    Session* session = reinterpret_cast<EngineObject*>(object)->session;
    if (!session) throw std::invalid_argument("the engine was not initialised");
    return *session;
}

// 1 to chunk_tokens tokens of the vocabulary.
inline std::vector<int64_t> read_tokens(PyObject* list, int64_t vocabulary) {
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

// Where float32 logits of `rows` tokens go: from the byte `offset` of a bytearray on.
inline float* logits_place(PyObject* logits, long long offset, int64_t rows, int64_t vocabulary) {
    const Py_ssize_t size = PyByteArray_Size(logits);
    const int64_t needed = rows * vocabulary * static_cast<int64_t>(sizeof(float));
    if (offset < 0 || offset % 4 || offset > size || needed > size - offset) {
        throw std::invalid_argument("the logits do not fit");
    }
    return reinterpret_cast<float*>(PyByteArray_AsString(logits) + offset);
}

// Runs `work` without Python's lock; nobody else may use the engine meanwhile.
template <class Work>
void run_alone(Session& session, Work&& work) {
    if (session.busy.exchange(true)) throw std::invalid_argument("the engine is busy");
    bool enough_memory = true;
    // References keep the arguments alive while others run Python.
    Py_BEGIN_ALLOW_THREADS
    try {
        work();
    } catch (const std::bad_alloc&) {
        enough_memory = false;
    }
    Py_END_ALLOW_THREADS
    session.busy = false;
    if (!enough_memory) throw std::bad_alloc();
}

// The session's engine, while no pass is running.
inline Engine& idle_engine(PyObject* object) {
    Session& session = session_of(object);
    if (session.busy) throw std::invalid_argument("the engine is busy");
    return *session.engine;
}

}  // namespace dsconv
