/* chunk_facts.h - made-up facts that chunk calibration hides in a text and asks for, from a seed and nothing else: numbers
 * under many keys, passkeys, and sentences whose question has other words than they have.
 */
#ifndef PCOMP_CHUNK_FACTS_H
#define PCOMP_CHUNK_FACTS_H

#include "base.h"

enum { CHUNK_FACTS_MAX = 24 }; /* in one text, each about something else */

/* Fact i of a text: the sentence that is hidden, and the question that it answers. Both are appended. */
int chunk_fact(uint64_t seed, int i, struct Str *needle, struct Str *question);

#endif
