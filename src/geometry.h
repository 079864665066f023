/* geometry.h - models of published shapes with seeded random weights, to measure speed and memory without weight files.
 *
 * A path "geometry:NAME" or "geometry:NAME:TYPE" opens one with model_open(). Its weights are not there at first:
 * Weight.data is NULL and Weight.seed says what every row holds. A backend that reads Weight.data needs
 * geometry_materialise() first; one that makes_weights repeats the rule below where its memory is.
 *
 * Word i of row r of a weight is the finaliser of splitmix64 over seed + (r * 2^32 + i) * 0x9e3779b97f4a7c15 (mod 2^64):
 *     z ^= z >> 30; z *= 0xbf58476d1ce4e5b9; z ^= z >> 27; z *= 0x94d049bb133111eb; z ^= z >> 31
 * Its bytes are taken from the low end. Any word can be made at once, from nothing else.
 *
 * F32, F16, BF16: byte j of word i is column 8 i + j, with the value (2 byte - 255) * s. s = 1 / sqrt(21845 cols) in f32;
 * the product is taken in f32 and rounded to nearest even.
 *
 * Block types: every block begins as the same bytes (scale, minimum, sub-scales), and its quants are words. A block
 * of n words takes words n b .. n b + n - 1 for block b: first those of the low bits (`low` bytes), each or'ed with
 * 0x1111111111111111 (Q8_0: 0x0101010101010101), so that codes are odd and as many lie above the middle as below;
 * then those of the high bits (`high` bytes), as they are, the last one cut where the bytes end. A weight is then
 * d * (code - middle), and d is 1 / sqrt(var cols) in f16, with var 5461 for Q8_0, 21 for 4-bit codes, 85 for 5-bit,
 * 341 for 6-bit. Sub-scales are 1; minima make up the middle.
 *
 * Either way weights are uniform with mean 0 and standard deviation 1 / sqrt(cols), which keeps a row's
 * length through a product. Norms are 1; biases are rows of F32 by the same rule.
 */
#ifndef PCOMP_GEOMETRY_H
#define PCOMP_GEOMETRY_H

#include "model.h"

#define GEOMETRY_PREFIX "geometry:"

bool geometry_named(const char *path);

/* What a device needs to make rows by the rule above. */
struct GeometryRule {
    uint64_t seed;
    bool plain; /* F32, F16, BF16: bytes of words times `step`; the rest is for block types */
    float step;
    int block_bytes, block_weights;
    int low_at, low, high_at, high; /* bytes of quants */
    uint64_t odd;                   /* or'ed into the words of the low bits */
    uint8_t block[256];             /* a block before its quants */
};
void geometry_rule(const struct Weight *w, struct GeometryRule *out);

/* One row as stored: dtype_row_bytes(w->type, w->cols) bytes. */
void geometry_fill_row(const struct Weight *w, int row, void *out);

/* Bytes that geometry_materialise() takes, or has taken. */
size_t geometry_bytes(const struct Model *m);
/* PC_ENOMEM with both numbers and a remedy when the weights do not fit into `available` bytes. */
int geometry_room(const struct Model *m, size_t available);
/* Makes all weights in memory that model_close() frees; nothing to do when they are there or come from a file.
 * available: bytes that may be taken; more is refused before the attempt. */
int geometry_materialise(struct Model *m, int threads, size_t available);

#endif
