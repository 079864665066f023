/* added.h - finds the spellings of added tokens in text: the longest of those that begin
 * leftmost. */
#ifndef PCOMP_ADDED_H
#define PCOMP_ADDED_H

#include "model.h"

struct Added {
    struct AddedNode *nodes; /* a trie over the spellings' bytes; node 0 is the root */
    int n_nodes, cap;
    bool first[256]; /* bytes that some spelling begins with */
    size_t longest;  /* bytes of the longest spelling of a TOKEN_USER token; 0: there is none */
};

/* Takes the TOKEN_CONTROL and TOKEN_USER tokens, spelled as in pieces. */
int added_open(struct Added *added, const struct VocabSpec *spec, const struct Slice *pieces);
void added_close(struct Added *added);

struct AddedHit {
    size_t begin, end;
    int id; /* -1: nothing found, begin == end == len */
};

/* The first spelling at or behind `from`; control tokens count only when asked for. */
struct AddedHit added_find(const struct Added *added, const char *text, size_t len, size_t from,
                           bool control);

/* Whether a TOKEN_USER spelling begins before `at` and ends there or behind: then the text may not be cut there. All of
 * `longest` bytes behind `at` must be there, or the text's end. */
bool added_touches(const struct Added *added, const char *text, size_t len, size_t at);

#endif
