/* pytext.h - Python's str (CPython 3.11, Unicode 14) on UTF-8 bytes, as far as the published scorers use it:
 * lower, upper, split, strip, re's \s \d \w, int().
 *
 * Any bytes are safe. A surrogate in its three-byte form (what json.loads makes of \ud83d) is one code
 * point; a byte that begins nothing valid is one code point of its own, beyond Unicode's last, and is
 * written back as that byte.
 */
#ifndef PCOMP_PYTEXT_H
#define PCOMP_PYTEXT_H

#include "base.h"

/* A borrowed piece of text. */
struct Span {
    const char *data;
    size_t len;
};

/* ==== Code points ==== */

/* The code point at *at (less than len), which moves behind it. */
uint32_t py_next(const char *text, size_t len, size_t *at);
/* Writes 1 to 4 bytes; returns how many. */
size_t py_encode(uint32_t cp, char *to);
int py_put(struct Str *out, uint32_t cp);
/* Writes the code points of text to out, which has room for len of them; returns how many. */
size_t py_points(const char *text, size_t len, uint32_t *out);

bool py_is_space(uint32_t cp); /* str.isspace, re \s, what split() and strip() take */
bool py_is_word(uint32_t cp);  /* re \w: isalnum or '_' */
int py_digit(uint32_t cp);     /* re \d: the value 0..9 of a decimal digit of any script, else -1 */
bool py_is_punct(uint32_t cp); /* in string.punctuation: ASCII only */

/* ==== Strings ==== */

/* Append text.lower() and text.upper(): whole mappings (İ, ß), and the final sigma. */
int py_lower(const char *text, size_t len, struct Str *out);
int py_upper(const char *text, size_t len, struct Str *out);
/* text.lower() of the code point at *at, which moves behind it: 1 or 2 code points; returns how many. */
int py_lower_next(const char *text, size_t len, size_t *at, uint32_t lower[2]);
struct Span py_strip(const char *text, size_t len);
/* Next word of text.split() from *at (0 at first): false at the end. */
bool py_split_next(const char *text, size_t len, size_t *at, struct Span *word);
/* Next piece of text.split(sep) for a one-byte separator, empty ones too; *at is 0 at first. */
bool py_split_at(const char *text, size_t len, char sep, size_t *at, struct Span *piece);
/* Next match of re's \d+ from *at: false when there is none. */
bool py_digits_next(const char *text, size_t len, size_t *at, struct Span *digits);
/* text.replace(one byte of `set`, " ") for each byte of set, which is ASCII: same length, in place. */
void py_blank(char *text, size_t len, const char *set);
/* int(text): 1 and the value in decimal ("-12") appended to out; 0 where Python raises ValueError (also
 * past its 4300 digits); negative: error. */
int py_int(const char *text, size_t len, struct Str *out);

/* round(x, 2) of a float (correctly rounded), and of numpy's float64 (scaled, rounded, scaled back). */
double py_round2(double x);
double np_round2(double x);
/* np.mean of n numbers: numpy's pairwise sum; NaN for none. */
double np_mean(const double *x, size_t n);

#endif
