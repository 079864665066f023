/* arms.c - see arms.h */
#include "arms.h"

#include <stdio.h>
#include <string.h>

/* A label becomes a folder's name. */
static int label_set(struct Arm *arm, const char *text, size_t len)
{
    if (len == 0 || len >= sizeof arm->label)
        return err_set(PC_ECONFIG, "the label of method '%.64s' has 1 to %zu characters", text,
                       sizeof arm->label - 1);
    memcpy(arm->label, text, len);
    arm->label[len] = '\0';
    for (char *c = arm->label; *c; c++)
        if (*c == '/' || (unsigned char)*c <= ' ' || (c == arm->label && *c == '.')) *c = '_';
    return PC_OK;
}

/* What the engine is opened with is one for all methods of a command. */
static int option_check(const char *name)
{
    static const char *const fixed[] = {"backend", "isa",        "precision",
                                        "kv_type", "gpu_memory", "threads"};
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
        if (strcmp(name, fixed[i]) == 0)
            return err_set(PC_ECONFIG,
                           "setting '%s' is the same for all methods of a command; give it as a "
                           "flag, and compare by two commands with two folders (-o)",
                           name);
    return PC_OK;
}

static int option_take(struct Arm *arm, const char *option, size_t len)
{
    char name[64], value[512];
    const char *equals = memchr(option, '=', len);
    size_t n = equals ? (size_t)(equals - option) : len;
    if (!equals || n == 0 || n >= sizeof name || len - n - 1 >= sizeof value)
        return err_set(PC_ECONFIG, "'%.*s' of a method is not setting=value", (int)len, option);
    for (size_t i = 0; i < n; i++) name[i] = option[i] == '-' ? '_' : option[i];
    name[n] = '\0';
    memcpy(value, equals + 1, len - n - 1);
    value[len - n - 1] = '\0';
    TRY(option_check(name));
    if (strcmp(name, "keep") == 0) arm->keep_given = true;
    if (strcmp(name, "kv_cap") == 0) arm->cap_given = true;
    if (strcmp(name, "max_tokens") == 0) arm->tokens_given = true;
    return settings_set(&arm->settings, name, value);
}

static int arm_parse(const char *text, struct Arm *arm)
{
    const char *colon = strchr(text, ':'), *comma = strchr(text, ',');
    if (colon && comma && comma < colon) colon = NULL; /* a colon inside a setting */
    TRY(label_set(arm, text, colon ? (size_t)(colon - text) : strlen(text)));
    const char *at = colon ? colon + 1 : text;
    for (int i = 0;; i++) {
        size_t len = strcspn(at, ",");
        char method[64];
        if (i > 0) {
            TRY(option_take(arm, at, len));
        } else {
            snprintf(method, sizeof method, "%.*s", (int)len, at);
            TRY(settings_set(&arm->settings, "method", method));
        }
        if (!at[len]) break;
        at += len + 1;
    }
    return settings_check(&arm->settings);
}

static void arm_begin(const struct Cli *cli, struct Arm *arm)
{
    *arm = (struct Arm){.settings = cli->settings,
                        .keep_given = cli_assigned(cli, "keep"),
                        .cap_given = cli_assigned(cli, "kv_cap"),
                        .tokens_given = cli_assigned(cli, "max_tokens")};
}

int arms_parse(const struct Cli *cli, const struct TextList *texts, struct Arm *arms, int *n)
{
    *n = texts->n ? texts->n : 1;
    if (*n > ARMS_MAX)
        return err_set(PC_ECONFIG, "%d methods are given; at most %d fit one run", *n, ARMS_MAX);
    for (int i = 0; i < *n; i++) {
        arm_begin(cli, &arms[i]);
        if (texts->n == 0)
            snprintf(arms[i].label, sizeof arms[i].label, "%s",
                     setting_word("method", (int)cli->settings.method));
        else
            TRY(arm_parse(texts->items[i], &arms[i]));
        for (int j = 0; j < i; j++)
            if (strcmp(arms[j].label, arms[i].label) == 0)
                return err_set(PC_ECONFIG,
                               "two methods have the label '%s'; name one as in 'other:%s'",
                               arms[i].label, texts->items[i]);
    }
    return PC_OK;
}
