/* lexicon.c - see lexicon.h */
#include "lexicon.h"

#include <string.h>

enum { EXACT_MAX = 8 };

static uint32_t load32(const char *at)
{
    uint32_t x;
    memcpy(&x, at, sizeof x);
    return x;
}

/* Distinct for distinct words of one size up to EXACT_MAX. */
static uint64_t short_key(const unsigned char *s, size_t len)
{
    if (len >= 4)
        return load32((const char *)s) | (uint64_t)load32((const char *)s + len - sizeof(uint32_t))
                                             << 32;
    return len ? (uint64_t)s[0] | s[len / 2] << 8 | s[len - 1] << 16 : 0;
}

static struct LexSlot slot_of(const struct Lexicon *lex, struct Span word)
{
    if (word.len <= EXACT_MAX)
        return (struct LexSlot){.key = short_key((const unsigned char *)word.data, word.len),
                                .size = (uint32_t)word.len};
    return (struct LexSlot){.key = hash64(word.data, word.len, lex->seed),
                            .size = EXACT_MAX + 1};
}

/* Where the slot belongs; its neighbours follow when that is taken. */
static size_t home_of(const struct Lexicon *lex, const struct LexSlot *slot)
{
    uint64_t x = slot->key + slot->size;
    return (size_t)((x ^ x >> 32) * lex->seed >> 32) & lex->mask;
}

static bool same_word(const struct Lexicon *lex, const struct LexSlot *have,
                      const struct LexSlot *want, struct Span word)
{
    if (have->key != want->key || have->size != want->size) return false;
    if (want->size <= EXACT_MAX) return true;
    struct Span other = lex->words[have->word - 1].text;
    return other.len == word.len && memcmp(other.data, word.data, word.len) == 0;
}

/* The slot that holds the word, or the free one where it would go. */
static size_t slot_find(const struct Lexicon *lex, const struct LexSlot *want, struct Span word)
{
    size_t at = home_of(lex, want);
    while (lex->slots[at].word && !same_word(lex, &lex->slots[at], want, word))
        at = (at + 1) & lex->mask;
    return at;
}

static void free_grown(struct Lexicon *lex)
{
    if (lex->slots == lex->few_slots) return;
    mem_free(lex->slots);
    mem_free(lex->words);
}

static int grow(struct Lexicon *lex)
{
    struct Lexicon more = {.mask = 4 * (lex->mask + 1) - 1, .seed = lex->seed};
    struct LexSlot *slots = mem_alloc(more.mask + 1, sizeof *slots);
    struct LexWord *words = mem_alloc((more.mask + 1) / 2, sizeof *words);
    if (!slots || !words) {
        mem_free(slots);
        mem_free(words);
        return PC_ENOMEM;
    }
    for (size_t i = 0; i <= lex->mask; i++) {
        if (!lex->slots[i].word) continue;
        size_t at = home_of(&more, &lex->slots[i]);
        while (slots[at].word) at = (at + 1) & more.mask;
        slots[at] = lex->slots[i];
    }
    memcpy(words, lex->words, lex->n * sizeof *words);
    free_grown(lex);
    lex->slots = slots;
    lex->words = words;
    lex->mask = more.mask;
    return PC_OK;
}

void lexicon_open(struct Lexicon *lex)
{
    lex->slots = lex->few_slots;
    lex->words = lex->few_words;
    lex->mask = 2 * LEX_FEW - 1;
    lex->n = 0;
    /* An odd factor that differs from run to run: no file can be made whose words all meet in one slot. */
    lex->seed = ((uint64_t)(uintptr_t)lex * 0x9e3779b97f4a7c15u >> 4) ^ 0x9e3779b97f4a7c15u;
    lex->seed |= 1;
    memset(lex->few_slots, 0, sizeof lex->few_slots);
}

int64_t lexicon_add(struct Lexicon *lex, struct Span word)
{
    struct LexSlot want = slot_of(lex, word);
    size_t at = slot_find(lex, &want, word);
    if (lex->slots[at].word) return (int64_t)lex->slots[at].word - 1;
    if (lex->n == (lex->mask + 1) / 2) {
        if (lex->n > UINT32_MAX / 4) return err_set(PC_ENOMEM, "too many distinct words");
        TRY(grow(lex));
        at = slot_find(lex, &want, word);
    }
    lex->words[lex->n++] = (struct LexWord){.text = word};
    want.word = (uint32_t)lex->n;
    lex->slots[at] = want;
    return (int64_t)lex->n - 1;
}

int64_t lexicon_find(const struct Lexicon *lex, struct Span word)
{
    struct LexSlot want = slot_of(lex, word);
    return (int64_t)lex->slots[slot_find(lex, &want, word)].word - 1;
}

void lexicon_close(struct Lexicon *lex)
{
    free_grown(lex);
}
