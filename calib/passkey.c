/* passkey.c - see passkey.h. */
#include "passkey.h"

enum { STEPS = 1000, STREAM_DEPTHS = 1 << 20, STREAM_CODES = 1 << 21 };

uint64_t passkey_draw(uint64_t seed, uint64_t stream, uint64_t i)
{
    uint64_t at[2] = {stream, i};
    return hash64(at, sizeof at, seed);
}

const char PASSKEY_LEAD[] = "Passkey:";

const char *passkey_ordinal(int key)
{
    static const char *const names[PASSKEYS_MAX] = {
        "first",     "second",      "third",      "fourth",     "fifth",
        "sixth",     "seventh",     "eighth",     "ninth",      "tenth",
        "eleventh",  "twelfth",     "thirteenth", "fourteenth", "fifteenth",
        "sixteenth", "seventeenth", "eighteenth", "nineteenth", "twentieth"};
    return names[key];
}

int passkey_words(uint64_t seed, int key, int n_words, struct Str *out)
{
    static const char *const nato[26] = {
        "alpha",  "bravo", "charlie", "delta",  "echo",     "foxtrot", "golf",   "hotel",  "india",
        "juliet", "kilo",  "lima",    "mike",   "november", "oscar",   "papa",   "quebec", "romeo",
        "sierra", "tango", "uniform", "victor", "whiskey",  "xray",    "yankee", "zulu"};
    for (int i = 0; i < n_words; i++)
        TRY(str_appendf(out, " %s", nato[passkey_draw(seed, (uint64_t)key, (uint64_t)i) % 26]));
    return PC_OK;
}

int passkey_needle(int key, struct Str *out)
{
    return str_appendf(out, "Remember this sequence of words, it's the %s passkey to the vault:",
                       passkey_ordinal(key));
}

int passkey_question(int key, struct Str *out)
{
    return str_appendf(out, "What is the %s passkey to the vault?", passkey_ordinal(key));
}

static const char *code_place(int key)
{
    static const char *const names[PASSKEYS_MAX] = {
        "harbour",  "mill",     "bakery",  "lighthouse", "school", "foundry", "orchard",
        "station",  "chapel",   "quarry",  "brewery",    "museum", "stable",  "theatre",
        "shipyard", "vineyard", "library", "hospital",   "market", "tannery"};
    return names[key];
}

int code_digits(uint64_t seed, int key, struct Str *out)
{
    uint64_t digits = passkey_draw(seed, (uint64_t)key, STREAM_CODES) % 9000000 + 1000000;
    return str_appendf(out, " %d", (int)digits);
}

int code_needle(int key, struct Str *out)
{
    return str_appendf(out, "The secret code of the %s is", code_place(key));
}

int code_question(int key, struct Str *out)
{
    return str_appendf(out, "What is the secret code of the %s?", code_place(key));
}

/* Draws until n different steps are found, each put in its place. */
void passkey_depths(uint64_t seed, int n, double *depths)
{
    int steps[PASSKEYS_MAX], found = 0;
    for (uint64_t i = 0; found < n; i++) {
        int step = (int)(passkey_draw(seed, STREAM_DEPTHS, i) % STEPS), at = found;
        while (at > 0 && steps[at - 1] > step) at--;
        if (at > 0 && steps[at - 1] == step) continue;
        for (int j = found++; j > at; j--) steps[j] = steps[j - 1];
        steps[at] = step;
    }
    for (int i = 0; i < n; i++) depths[i] = 0.05 + 0.9 * steps[i] / (STEPS - 1);
}
