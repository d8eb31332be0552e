// The matrix kernels as Python functions, for tests.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

namespace dsconv {

extern PyMethodDef linear_methods[];

}  // namespace dsconv
