/* backend.c - chooses a backend by name. */
#include "backend.h"

#include <string.h>

int backend_by_name(const char *name, const struct Backend **out)
{
    if (strcmp(name, "auto") && strcmp(name, backend_cpu.name))
        return err_set(PC_ECONFIG, "backend '%s' is not in this build; it has: %s", name,
                       backend_cpu.name);
    *out = &backend_cpu;
    return PC_OK;
}
