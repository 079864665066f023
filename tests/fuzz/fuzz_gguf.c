/* fuzz_gguf.c - libFuzzer entry: any bytes as a GGUF file, then every value and tensor touched. */
#include "src/gguf.h"
#include "src/quant.h"

#include <stdlib.h>
#include <string.h>

static uint64_t touch_key(const struct GgufKey *key)
{
    uint64_t sum = 0;
    const uint8_t *pos = key->data;
    for (uint64_t i = 0; i < key->n; i++) {
        int64_t whole = 0;
        double real = 0;
        if (key->type == GGUF_STRING) {
            struct GgufText text = gguf_next_text(&pos);
            sum ^= hash64(text.data, text.len, sum);
        } else if (gguf_int(key, i, &whole)) {
            sum += (uint64_t)whole;
        } else if (gguf_double(key, i, &real)) {
            sum += real > 0;
        } else {
            break;
        }
    }
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct Gguf g;
    if (gguf_parse(data, size, "fuzz", &g) < 0) return 0;
    uint64_t sum = 0;
    for (int i = 0; i < g.n_keys; i++) sum += touch_key(&g.keys[i]);
    for (int i = 0; i < g.n_tensors; i++) sum += hash64(g.tensors[i].data, g.tensors[i].bytes, sum);
    /* The sum is used, so that the reads are not optimised away. */
    if (sum == 0x5eed && size == 1) abort();
    gguf_free(&g);
    return 0;
}
