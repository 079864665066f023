/* jieba.h - Chinese word segmentation, token for token as jieba 0.42.1's default mode (cut with HMM). */
#ifndef PCOMP_JIEBA_H
#define PCOMP_JIEBA_H

#include "base.h"

struct Jieba;

/* Opens the dictionary folder made by `tests/fetch.sh jieba` (dict.txt and the HMM's tables). NULL folder:
 * $PCOMP_JIEBA, else models/jieba beside the binary's build folder, else /usr/share/pcomp/jieba.
 * PC_EIO names what is missing and the remedy. jieba_close. Read-only afterwards: threads may share it. */
int jieba_open(const char *folder, struct Jieba **out);
void jieba_close(struct Jieba *j);
/* Calls word() for each word of text, in order; their bytes joined are the text. */
int jieba_cut(const struct Jieba *j, const char *text, size_t len,
              int (*word)(void *user, const char *word, size_t len), void *user);

#endif
