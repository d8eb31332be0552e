// Reads a program from the tuples that runtime/sessions/native.py hands over.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <exception>

#include "memory.h"
#include "program.h"

namespace dsconv {

// A Python exception is set already.
struct PythonError : std::exception {};

// Throws PythonError, or std::invalid_argument when something does not lie within the file or does
// not fit the buffers.
Program read_program(PyObject* buffers, PyObject* steps, const MappedFile& file);

}  // namespace dsconv
