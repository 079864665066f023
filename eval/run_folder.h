/* run_folder.h - the folder of a run: run.json, and a folder for each method with a file for each task. */
#ifndef PCOMP_RUN_FOLDER_H
#define PCOMP_RUN_FOLDER_H

#include "runner.h"

/* Makes the folders, opens all files of results and writes run.json. Settings that differ from those
 * of lines that are there are refused; with --fresh such files are renamed to FILE.old-N first. */
int run_folder_open(struct Runner *r, const char *folder);
void run_folder_close(struct Runner *r);

#endif
