/* jsontext.h - reads JSON in place as Python's json.loads does: what cJSON cannot give to a scorer.
 *
 * A string may hold NUL and lone surrogates (\ud83d alone becomes its three-byte form), of two members of
 * one name the last counts (the caller sees both, in order), and numbers keep their spelling. Decoded
 * strings go one after another into room that the caller gives: they never need more than the JSON did.
 */
#ifndef PCOMP_JSONTEXT_H
#define PCOMP_JSONTEXT_H

#include "base.h"

struct JsonText {
    const char *text;
    size_t len, at; /* at: also where an error is */
    char *room;     /* next free byte for decoded strings; as many as the text has */
    int depth;
};

/* First byte of the value that comes next, white space passed over; 0 at the end. */
char json_peek(struct JsonText *j);
/* The next value, which must be a string, decoded and NUL-terminated in the room. */
int json_string(struct JsonText *j, struct Str *out);
/* The next value, which must be a number (NaN and Infinity too): its spelling, NUL-terminated in the room. */
int json_number(struct JsonText *j, struct Str *out);
/* Passes over any value. */
int json_skip(struct JsonText *j);
/* Steps into an object or array, and from member to member: 1 there is one more, 0 it is closed, negative:
 * error. *first is true before the first call. For objects `key` is the member's name. */
int json_member(struct JsonText *j, bool *first, struct Str *key);
int json_element(struct JsonText *j, bool *first);
/* Nothing but white space is left. */
int json_end(struct JsonText *j);

#endif
