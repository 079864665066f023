/* row_text.h - texts in data sets that JSON readers stumble over, made plain. */
#ifndef PCOMP_ROW_TEXT_H
#define PCOMP_ROW_TEXT_H

#include "base.h"

/* Appends a line of JSON to out with each lone surrogate escape (\ud83d without its pair), which no UTF-8 text can
 * hold, replaced by \ufffd. PC_EFORMAT names the byte: not UTF-8, or NUL (also as \u0000), which would
 * cut a text off. */
int json_clean(const char *line, size_t len, struct Str *out);

#endif
