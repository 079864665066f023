/* config_env.c - settings from the environment: PCOMP_NAME for each of the table's names. */
#include "config.h"

#include <stdio.h>
#include <string.h>

extern char **environ;

/* Variables that say where files are. */
static bool of_the_command_line(const char *name)
{
    return strcmp(name, "model") == 0 || strcmp(name, "tasks") == 0 || strcmp(name, "jieba") == 0;
}

int settings_env(struct Settings *s)
{
    struct Settings copy = *s;
    for (char **entry = environ; *entry; entry++) {
        const char *equals = strchr(*entry, '=');
        if (strncmp(*entry, "PCOMP_", 6) != 0 || !equals) continue;
        char name[64] = "";
        size_t len = (size_t)(equals - *entry) - 6;
        if (len == 0 || len >= sizeof name) continue;
        for (size_t i = 0; i < len; i++) {
            char c = (*entry)[6 + i];
            name[i] = c >= 'A' && c <= 'Z' ? (char)(c + 32) : c;
        }
        if (of_the_command_line(name)) continue;
        if (!setting_find(name)) {
            const char *best = settings_nearest(name);
            log_msg(LOG_WARN, "environment variable PCOMP_%.*s is no setting and is ignored%s%s%s",
                    (int)len, *entry + 6, best ? " (nearest setting: " : "", best ? best : "",
                    best ? ")" : "");
            continue;
        }
        int status = settings_set(&copy, name, equals + 1);
        if (status < 0)
            return err_prefix(status, "environment variable PCOMP_%.*s", (int)len, *entry + 6);
    }
    *s = copy;
    return PC_OK;
}
