/* backend.c - chooses a backend by name.
 *
 * backend_cuda is a weak symbol: the same objects make a build with it and one without.
 */
#include "backend.h"

#include <string.h>

const char *backend_names(void)
{
    return &backend_cuda ? "cuda, cpu" : "cpu";
}

int backend_by_name(const char *name, const struct Backend **out)
{
    const struct Backend *all[] = {&backend_cuda, &backend_cpu}; /* the fastest first */
    bool any = !strcmp(name, "auto");
    for (int i = 0; i < 2; i++) {
        if (!all[i] || (any ? !all[i]->available() : strcmp(name, all[i]->name))) continue;
        *out = all[i];
        return PC_OK;
    }
    return err_set(PC_ECONFIG, "backend '%s' is not in this build; it has: %s%s", name,
                   backend_names(), strcmp(name, "cuda") ? "" : " (make cuda builds the other)");
}
