/* config_help.c - the settings as text: for --help, and as the README's table. */
#include "config.h"

#include <stdio.h>
#include <string.h>

static int help_line(const struct Setting *set, bool markdown, struct Str *out)
{
    char limits[256], flag[64];
    setting_limits(set, limits, sizeof limits);
    if (markdown)
        return str_appendf(out, "| `%s` | %s%s%s | %s | %s |\n", set->name,
                           *set->def ? "`" : "(empty)", set->def, *set->def ? "`" : "", limits,
                           set->help);
    int len = snprintf(flag, sizeof flag, "--%s", set->name);
    for (int i = 2; i < len; i++)
        if (flag[i] == '_') flag[i] = '-';
    return str_appendf(out, "  %-18s %s\n%21s[%s; default %s]\n", flag, set->help, "", limits,
                       *set->def ? set->def : "(empty)");
}

int settings_help(bool markdown, struct Str *out)
{
    const char *group = "";
    if (markdown)
        TRY(str_appendf(out, "| setting | default | accepted | meaning |\n|---|---|---|---|\n"));
    for (int i = 0; i < N_SETTINGS; i++) {
        if (!markdown && strcmp(group, SETTINGS[i].group) != 0) {
            group = SETTINGS[i].group;
            TRY(str_appendf(out, "%sSettings of the %s:\n", i ? "\n" : "", group));
        }
        TRY(help_line(&SETTINGS[i], markdown, out));
    }
    return PC_OK;
}
