/* fuzz_safetensors.c - libFuzzer entry: any bytes as a safetensors file, then every tensor touched. */
#include "src/safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct SafeFile s;
    if (safetensors_parse(data, size, "fuzz", &s) < 0) return 0;
    uint64_t sum = 0;
    for (int i = 0; i < s.n_tensors; i++) {
        sum += hash64(s.tensors[i].data, s.tensors[i].bytes, sum);
        sum += hash64(s.tensors[i].name, strlen(s.tensors[i].name), sum);
    }
    /* The sum is used, so that the reads are not optimised away. */
    if (sum == 0x5eed && size == 1) abort();
    safetensors_free(&s);
    return 0;
}
