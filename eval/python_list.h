/* python_list.h - the text of a Python list of strings, "['a', \"b\"]", as LongBench stores its classes. */
#ifndef PCOMP_PYTHON_LIST_H
#define PCOMP_PYTHON_LIST_H

#include "base.h"

struct PythonList {
    const char *at, *end; /* what is left to read; begin with the whole text */
    bool begun;
};

/* Puts the next text into item (a lone surrogate as its three-byte form): 1, or 0 at the end of the list.
 * PC_EFORMAT: not a list of strings as repr() writes it. */
int python_list_next(struct PythonList *l, struct Str *item);

#endif
