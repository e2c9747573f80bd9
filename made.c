#include <Python.h>
    static struct PyModuleDef made = {PyModuleDef_HEAD_INIT, __FILE__, 0, -1, 0};
    PyMODINIT_FUNC PyInit_(void) { return PyModule_Create(&made); }
