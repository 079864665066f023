/* fuzz_jsonl.c - a work list of any bytes: every line gives an item or an error with an id. */
#include "jsonl.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t at = 0, len, before = 0;
    const char *line;
    for (long number = 1; line_next((const char *)data, size, &at, &line, &len); number++) {
        struct Item item;
        if (at <= before || at > size) abort();
        before = at;
        int status = item_parse(line, len, number, &item);
        if (status == PC_OK && !item.id.data) abort();
        if (status == PC_OK && item.file.len && item.text.len) abort();
        if (status != PC_OK && status != PC_EFORMAT) abort();
        item_free(&item);
    }
    if (mem_in_use() != 0) abort();
    return 0;
}
