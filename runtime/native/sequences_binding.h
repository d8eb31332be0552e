// Methods of the Python `Engine` for many sequences.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace dsconv {

PyObject* engine_add(PyObject* object, PyObject*);
PyObject* engine_fork(PyObject* object, PyObject* arguments);
PyObject* engine_drop(PyObject* object, PyObject* number);
PyObject* engine_truncate_sequence(PyObject* object, PyObject* arguments);
PyObject* engine_length(PyObject* object, PyObject* number);
PyObject* engine_missing_blocks(PyObject* object, PyObject* pieces);
PyObject* engine_step(PyObject* object, PyObject* arguments);

}  // namespace dsconv
