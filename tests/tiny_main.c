/* tiny_main.c - `tiny_model OUT.gguf [arch]`: writes the default miniature model for the CLI tests. */
#include "tests/tiny.h"

#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
    const char *arch = argc > 2 ? argv[2] : "llama";
    bool known =
        strcmp(arch, "llama") == 0 || strcmp(arch, "qwen2") == 0 || strcmp(arch, "qwen3") == 0;
    if (argc < 2 || argc > 3 || !known) {
        fprintf(stderr, "usage: tiny_model OUT.gguf [llama|qwen2|qwen3]\n");
        return 2;
    }
    struct TinySpec spec = tiny_spec(arch);
    if (tiny_gguf(argv[1], &spec) < 0) {
        fprintf(stderr, "tiny_model: %s\n", err_text());
        return 1;
    }
    return 0;
}
