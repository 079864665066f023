/* arms.h - the methods that one run compares: a name, settings that differ, and a label. */
#ifndef PCOMP_ARMS_H
#define PCOMP_ARMS_H

#include "cli.h"

enum { ARMS_MAX = 64 };

struct Arm {
    char label[96]; /* names the folder of its predictions */
    struct Settings settings;
    bool keep_given, cap_given, tokens_given; /* set by the user, so no task changes them */
};

/* Reads "[label:]method[,setting=value]…", as "parallelcomp,kv_cap=off" or "wide:parallelcomp,keep=4", onto
 * the command's settings. Two arms of one label are refused. No text: one arm, the settings' method. */
int arms_parse(const struct Cli *cli, const struct TextList *texts, struct Arm *arms, int *n);

#endif
