/* fuzz_headmap.c - any bytes as a head map of a small model, in every format: what is accepted holds what headmap.h
 * promises, and survives being written and read again.
 */
#include "headmap.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { HEADS = 4 };
static const struct HeadShape model = {2, 4, 2};

static void require(bool good)
{
    if (!good) abort();
}

static void parse(const struct Str *text, struct HeadMap *out)
{
    require(headmap_parse(text->data, text->len, "again", &model, out) == PC_OK);
}

/* What is written reads back, and is then written the same. */
static void round_trip_json(const struct HeadMap *map)
{
    struct Str first = {0}, second = {0};
    struct HeadMap again;
    require(headmap_json_text(map, &first) == PC_OK);
    parse(&first, &again);
    require(memcmp(map->scores, again.scores, HEADS * sizeof(float)) == 0);
    require(headmap_json_text(&again, &second) == PC_OK);
    require(first.len == second.len && memcmp(first.data, second.data, first.len) == 0);
    headmap_close(&again);
    str_free(&first);
    str_free(&second);
}

static void round_trip_duo(const struct HeadMap *map)
{
    struct Str tsv[2] = {{0}}, config[2] = {{0}};
    struct HeadMap again;
    require(headmap_duo_text(map, &tsv[0], &config[0]) == PC_OK);
    parse(&tsv[0], &again);
    require(headmap_parse_config(config[0].data, config[0].len, "again", &again) == PC_OK);
    memcpy(again.method, map->method, sizeof again.method); /* an empty one is not written */
    require(headmap_duo_text(&again, &tsv[1], &config[1]) == PC_OK);
    require(strcmp(tsv[0].data, tsv[1].data) == 0 && strcmp(config[0].data, config[1].data) == 0);
    headmap_close(&again);
    for (int i = 0; i < 2; i++) {
        str_free(&tsv[i]);
        str_free(&config[i]);
    }
}

static void round_trip_rtp(const struct HeadMap *map)
{
    struct Str text = {0};
    struct HeadMap again;
    uint8_t keep[HEADS], back[HEADS];
    require(headmap_keep(map, 0.5, 1, keep) == HEADS / 2);
    require(headmap_rtp_text(map, keep, &text) == PC_OK);
    parse(&text, &again);
    require(headmap_keep_above(&again, 0.5f, back) == HEADS / 2);
    require(memcmp(keep, back, HEADS) == 0);
    require(again.recent == map->recent && again.sink == map->sink);
    headmap_close(&again);
    str_free(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct HeadMap map;
    log_set(LOG_ERROR);
    if (size == 0) return 0;
    /* The first byte says whether it is config.json beside a table. */
    const char *text = (const char *)data + 1;
    int status;
    if (data[0] == 'c') {
        require(headmap_open(&model, false, &map) == PC_OK);
        status = headmap_parse_config(text, size - 1, "fuzz", &map);
    } else {
        status = headmap_parse(text, size - 1, "fuzz", &model, &map);
    }
    require(status == PC_OK || status == PC_EFORMAT);
    if (status == PC_OK) {
        require(headmap_check(&map) == PC_OK);
        round_trip_json(&map);
        round_trip_duo(&map);
        round_trip_rtp(&map);
    }
    if (status == PC_OK || data[0] == 'c') headmap_close(&map);
    require(mem_in_use() == 0);
    return 0;
}
