/* strmap.c - see strmap.h. */
#include "strmap.h"

#include <string.h>

static uint64_t strmap_slot(uint64_t hash, int index)
{
    return (hash & 0xffffffff00000000u) | (uint32_t)(index + 1);
}

/* The slot that holds the key, or the free one where it would go. */
static size_t strmap_probe(const struct StrMap *map, uint64_t hash, const char *data, size_t len)
{
    size_t at = (size_t)hash & map->mask;
    for (;; at = (at + 1) & map->mask) {
        uint64_t slot = map->slots[at];
        if (!slot) return at;
        if ((slot ^ hash) >> 32) continue;
        const struct Slice *key = &map->keys[(uint32_t)slot - 1];
        if (key->len == len && memcmp(key->data, data, len) == 0) return at;
    }
}

int strmap_build(struct StrMap *map, const struct Slice *keys, int n)
{
    size_t cap = 16;
    while (cap < (size_t)n * 2) cap *= 2;
    map->keys = keys;
    map->mask = cap - 1;
    map->slots = mem_alloc(cap, sizeof(*map->slots));
    if (!map->slots) return PC_ENOMEM;
    for (int i = 0; i < n; i++) {
        if (!keys[i].data) continue;
        uint64_t hash = hash64(keys[i].data, keys[i].len, 0);
        map->slots[strmap_probe(map, hash, keys[i].data, keys[i].len)] = strmap_slot(hash, i);
    }
    return PC_OK;
}

void strmap_free(struct StrMap *map)
{
    mem_free(map->slots);
    *map = (struct StrMap){0};
}

int strmap_find(const struct StrMap *map, const char *data, size_t len)
{
    uint64_t hash = hash64(data, len, 0);
    uint64_t slot = map->slots[strmap_probe(map, hash, data, len)];
    return slot ? (int)((uint32_t)slot - 1) : -1;
}
