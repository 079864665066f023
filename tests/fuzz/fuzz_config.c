/* fuzz_config.c - settings from JSON and from text: whatever is accepted survives a round trip. */
#include "config.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Settings that were accepted must be written as JSON that is accepted again and says the same. */
static void round_trip(const struct Settings *s)
{
    struct Settings again;
    struct Str first = {0}, second = {0};
    settings_default(&again);
    if (settings_json(s, &first) < 0) abort();
    if (settings_parse(&again, first.data, first.len, "again") < 0) abort();
    if (settings_json(&again, &second) < 0) abort();
    if (strcmp(first.data, second.data) != 0) abort();
    str_free(&first);
    str_free(&second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct Settings s;
    settings_default(&s);
    if (size == 0) return 0;
    if (data[0] & 1) {
        if (settings_parse(&s, (const char *)data + 1, size - 1, "fuzz") == PC_OK) round_trip(&s);
        return 0;
    }
    const struct Setting *set = &SETTINGS[(data[0] >> 1) % N_SETTINGS];
    char *text = malloc(size);
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\0';
    /* Anything else than a list would be the path of a file. */
    if ((set->type != SET_CALIB || text[0] == '[') && settings_set(&s, set->name, text) == PC_OK)
        round_trip(&s);
    free(text);
    return 0;
}
