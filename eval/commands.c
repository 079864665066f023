/* commands.c - pcomp-eval: its tables of flags and commands. */
#include "eval.h"

enum {
    ON_SETTINGS = 1,
    ON_COMPLETION = 2,
    ON_HELP = 4,
    ON_FILES = 8, /* longbench, longbench-e */
    ON_GRID = 16, /* ruler, niah */
    ON_RESCORE = 32,
    ON_REPORT = 64,
    ON_GENERATE = 128,
    ON_INFINITE = 256, /* infinitebench: files, or rows made here */
    ON_DATA = ON_FILES | ON_INFINITE,
    ON_ENGINE = ON_DATA | ON_GRID,
    ON_ROWS = ON_GRID | ON_GENERATE | ON_INFINITE,
    ON_ALL = 511,
};

#define AT(field) offsetof(struct EvalCli, field)

static const struct Flag FLAGS[] = {
    {"model", 'm', FLAG_TEXT, AT(cli.model), 0, 0, ON_ENGINE | ON_GENERATE, "FILE",
     "model: a .gguf file or a safetensors folder (default: $PCOMP_MODEL, else models/)"},
    {"geometry", 0, FLAG_TEXT, AT(cli.geometry), 0, 0, ON_ENGINE, "NAME[:TYPE]",
     "random weights of a published shape, to measure speed and memory: llama3-8b, llama2-7b, "
     "qwen2.5-7b, smollm2-135m, qwen2.5-0.5b, tiny; TYPE bf16 (default), q8_0, q4_k ..."},
    {"data", 'd', FLAG_TEXT, AT(data), 0, 0, ON_DATA, "PATH",
     "folder of the task files (.jsonl, .jsonl.gz, .jsonl.zst), or one file"},
    {"method", 0, FLAG_LIST, AT(arms), 0, 0, ON_ENGINE, "[LABEL:]NAME[,SETTING=VALUE]...",
     "a method to run; repeat to compare several on the same rows"},
    {"tasks", 0, FLAG_TEXT, AT(tasks), 0, 0, ON_ENGINE, "NAME,...",
     "tasks to run (default: all that the data has)"},
    {"tokens", 0, FLAG_TEXT, AT(lengths), 0, 0, ON_ROWS, "N[,N...]",
     "lengths of the context, as 4096, 4K or 1M (default 4096)"},
    {"depth", 0, FLAG_TEXT, AT(depths), 0, 0, ON_ROWS, "X[,X...]",
     "where the asked piece stands, 0 to 1 (default: drawn; niah: 0,0.25,0.5,0.75,1)"},
    {"count", 0, FLAG_INT, AT(count), 1, 1e6, ON_ROWS, "N",
     "samples of each length and depth (default 1)"},
    {"draw", 0, FLAG_INT, AT(seed), 0, 2147483647, ON_ROWS, "N",
     "seed of the samples (default 0); --seed is the sampler's"},
    {"haystack", 'f', FLAG_TEXT, AT(haystack), 0, 0, ON_ROWS, "FILE",
     "text to hide in (default: models/book.txt)"},
    {"qa", 0, FLAG_TEXT, AT(qa_file), 0, 0, ON_ROWS, "FILE",
     "question set of qa_1 (SQuAD 2) or qa_2 (HotpotQA)"},
    {"needle", 0, FLAG_TEXT, AT(needle), 0, 0, ON_ROWS, "TEXT",
     "needle: hide this sentence; with --question and --answer"},
    {"question", 'q', FLAG_TEXT, AT(needle_question), 0, 0, ON_ROWS, "TEXT",
     "needle: what is asked"},
    {"answer", 0, FLAG_TEXT, AT(needle_answer), 0, 0, ON_ROWS, "TEXT",
     "needle: the part of the sentence that answers"},
    {"keys", 0, FLAG_INT, AT(n_keys), 1, 1000, ON_ROWS, "N", "niah: keys hidden; vt, hops: chains"},
    {"values", 0, FLAG_INT, AT(n_values), 1, 1000, ON_ROWS, "N", "niah: values a key"},
    {"queries", 0, FLAG_INT, AT(n_queries), 1, 1000, ON_ROWS, "N", "niah: keys asked for"},
    {"hops", 0, FLAG_INT, AT(n_hops), 1, 100, ON_ROWS, "N",
     "vt, hops: steps of a chain; code_run: calls"},
    {"needles", 0, FLAG_INT, AT(n_needles), 1, 1000, ON_ROWS, "N",
     "needles: how many (default 10)"},
    {"words", 0, FLAG_INT, AT(n_words), 1, 32, ON_ROWS, "N", "passphrase: how many (default 5)"},
    {"profile", 0, FLAG_TEXT, AT(profile), 0, 0, ON_ENGINE, "NAME",
     "rules of prompts and lengths: official (default) or parallelcomp"},
    {"split", 0, FLAG_TEXT, AT(split), 0, 0, ON_ENGINE, "K/N",
     "every N-th row from the K-th on, as 1/2 to choose settings and 2/2 to report"},
    {"limit", 0, FLAG_INT, AT(limit), 1, 1 << 30, ON_ENGINE, "N", "rows of each task at most"},
    {"code-sim", 0, FLAG_TEXT, AT(code_sim), 0, 0, ON_DATA | ON_RESCORE, "difflib|indel",
     "similarity of code lines: as published (default), or with python-Levenshtein"},
    {"run", 'o', FLAG_TEXT, AT(run_dir), 0, 0, ON_ENGINE, "FOLDER",
     "folder of the run: predictions, scores, records (default runs/BENCHMARK)"},
    {"store", 0, FLAG_TEXT, AT(cli.store_dir), 0, 0, ON_ENGINE, "DIR",
     "keep texts there as `pcomp index` does: rows of the same text read it once (method parallelcomp)"},
    {"share", 0, FLAG_SWITCH, AT(cli.share), 0, 0, ON_ENGINE, "",
     "let other processes with the same --run folder take rows too, as in a job array; on by itself under mpirun and srun"},
    {"workers", 'w', FLAG_INT, AT(workers), 1, 256, ON_ENGINE, "N",
     "processes that share the rows (default 1)"},
    {"fresh", 0, FLAG_SWITCH, AT(cli.fresh), 0, 0, ON_ENGINE, "",
     "set results of other settings aside and begin anew"},
    {"config", 'c', FLAG_TEXT, AT(cli.config), 0, 0, ON_ENGINE, "FILE",
     "settings from a JSON file"},
    {"progress", 0, FLAG_TEXT, AT(cli.progress), 0, 0, ON_ENGINE, "auto|none|plain|json",
     "progress on standard error"},
    {"json", 0, FLAG_SWITCH, AT(cli.json), 0, 0, ON_RESCORE, "", "as JSON"},
    {"output", 'o', FLAG_TEXT, AT(cli.output), 0, 0, ON_REPORT | ON_GENERATE, "FILE",
     "write to a file instead of standard output"},
    {"format", 0, FLAG_TEXT, AT(cli.format), 0, 0, ON_REPORT, "FORM",
     "html, md or csv; else by the output's ending, else html"},
    {"baseline", 0, FLAG_TEXT, AT(baseline), 0, 0, ON_REPORT, "METHOD",
     "compare the others with this one instead of the first"},
    {"markdown", 0, FLAG_SWITCH, AT(cli.markdown), 0, 0, ON_SETTINGS, "", "as a Markdown table"},
    {"quiet", 0, FLAG_SWITCH, AT(cli.quiet), 0, 0, ON_ALL, "", "errors only on standard error"},
    {"verbose", 'v', FLAG_SWITCH, AT(cli.verbose), 0, 0, ON_ALL, "", "say more on standard error"},
    {"log-file", 0, FLAG_TEXT, AT(cli.log_file), 0, 0, ON_ALL, "FILE",
     "append what goes to standard error to a file instead"},
    {"help", 'h', FLAG_SWITCH, AT(cli.help), 0, 0, ON_ALL, "", "this help"},
    {"version", 0, FLAG_SWITCH, AT(cli.version), 0, 0, ON_ALL, "", "version, build and device"},
};

#define RULER_TASKS                                                                                \
    "niah_single_1 niah_single_2 niah_single_3 niah_multikey_1 niah_multikey_2 niah_multikey_3 "   \
    "niah_multivalue niah_multiquery vt cwe fwe qa_1 qa_2"
#define OTHER_TASKS                                                                                \
    "passkey number_string kv_retrieval math_find math_calc code_run needle needles passphrase hops"

static const struct Command COMMANDS[] = {
    {"longbench", ON_FILES, cmd_longbench, "run and score LongBench v1, all 21 tasks or some",
     "pcomp-eval longbench -m MODEL -d DATA [--method NAME]... [-o RUN]",
     "Runs each row under each method and appends a line of prediction, score and record to\n"
     "RUN/METHOD/TASK.jsonl, which LongBench's own eval.py reads too. The same command goes on where\n"
     "it was stopped. Prompts, lengths and stop rules: configs/tasks/longbench.json.",
     "pcomp-eval longbench -d data/ --method full --method truncate --method parallelcomp", NULL,
     NULL},
    {"longbench-e", ON_FILES, cmd_longbench_e, "the same for LongBench-E (files TASK_e.jsonl)",
     "pcomp-eval longbench-e -m MODEL -d DATA [--method NAME]... [-o RUN]",
     "As longbench; scores are reported by length: under 4,000 words, under 8,000, above.",
     "pcomp-eval longbench-e -d data/ --tasks hotpotqa,trec", NULL, NULL},
    {"infinitebench", ON_INFINITE, cmd_infinitebench, "run and score InfiniteBench, all 12 tasks",
     "pcomp-eval infinitebench -m MODEL [-d DATA | --tokens N,...] [--method NAME]... [-o RUN]",
     "As longbench, with RUN/METHOD/preds_TASK.jsonl as the benchmark's scripts name them. The scorers\n"
     "are those of June 2024 (infinitebench@2024-06), the prompts those of base models (yarn-mistral).\n"
     "Without -d it makes rows of its own for passkey, number_string, kv_retrieval, math_find, math_calc\n"
     "and code_run, and says so in the records.",
     "pcomp-eval infinitebench -d data/ --tasks passkey,kv_retrieval --limit 50", NULL, NULL},
    {"ruler", ON_GRID, cmd_ruler, "run and score RULER's tasks on generated rows",
     "pcomp-eval ruler -m MODEL [--tasks NAME,...] [--tokens N,...] [--count N] [-o RUN]",
     "Makes rows of exactly N tokens of the model, the same for each method and on every machine.\n"
     "qa_1 and qa_2 need --qa FILE. Scores are shares of the expected strings found.",
     "pcomp-eval ruler --tasks niah_multikey_1,vt --tokens 8K,32K --count 20", NULL, NULL},
    {"niah", ON_GRID, cmd_niah, "needles in a text of yours, by length and depth",
     "pcomp-eval niah -m MODEL [-f TEXT] [--tokens N,...] [--depth X,...] [-o RUN]",
     "Hides a sentence in the text (default: the book) at each depth and length and asks for it.\n"
     "Tasks: needle (default), needles, passphrase, hops, and needle_own for your own --needle --question\n"
     "--answer.",
     "pcomp-eval niah --tokens 16K,128K --method parallelcomp --method truncate", NULL, NULL},
    {"rescore", ON_RESCORE, cmd_rescore, "score existing prediction files",
     "pcomp-eval rescore longbench|longbench-e|infinitebench DIR... [--json]",
     "Reads DIR/<task>.jsonl, or DIR/preds_<task>.jsonl for InfiniteBench. No model is needed. Exit 5:\n"
     "some rows are malformed, or the Chinese tasks lack their dictionary.",
     "pcomp-eval rescore longbench pred/llama3-8b-instruct", NULL,
     "longbench longbench-e infinitebench"},
    {"report", ON_REPORT, cmd_report, "scores, intervals and drawings of one run or several",
     "pcomp-eval report RUN... [-o FILE.html] [--format html|md|csv] [--baseline METHOD]",
     "RUN is a folder that an evaluation wrote. Several are set side by side. The page is one file\n"
     "that needs no network. Lines that cannot be read are named in it and do not stop it.",
     "pcomp-eval report runs/longbench -o longbench.html", NULL, NULL},
    {"generate", ON_GENERATE, cmd_generate, "samples of a synthetic task, exact in tokens",
     "pcomp-eval generate TASK [--tokens N,...] [--depth X,...] [--count N] [-o FILE.jsonl]",
     "Tasks of RULER: " RULER_TASKS ";\nof InfiniteBench and ours: " OTHER_TASKS
     ".\nRows hold id, context, input, answers, length (tokens), depth and answer_at (bytes into\n"
     "context). A seed gives the same bytes on every machine. A text too short for a length is "
     "repeated.",
     "pcomp-eval generate niah_single_2 --tokens 4K,32K --depth 0,0.5,1 -o niah.jsonl", NULL,
     RULER_TASKS " " OTHER_TASKS},
    {"settings", ON_SETTINGS, cmd_settings, "every setting with its default and limits",
     "pcomp-eval settings [--markdown]",
     "A setting is a key of a --config file, a flag (--kv-cap) and a variable (PCOMP_KV_CAP).",
     "pcomp-eval settings --markdown", NULL, NULL},
    {"completion", ON_COMPLETION, cmd_completion, "completions for a shell",
     "pcomp-eval completion bash|zsh", "Prints a script for the shell to read.",
     "source <(pcomp-eval completion bash)", NULL, "bash zsh"},
    {"help", ON_HELP, cmd_help, "help on a command", "pcomp-eval help [COMMAND]", "",
     "pcomp-eval help longbench", NULL, NULL},
};

const struct Program PCOMP_EVAL = {
    .name = "pcomp-eval",
    .about = "scores long-context methods on LongBench, InfiniteBench, RULER and needles",
    .commands = COMMANDS,
    .n_commands = sizeof COMMANDS / sizeof COMMANDS[0],
    .flags = FLAGS,
    .n_flags = sizeof FLAGS / sizeof FLAGS[0],
    .on_engine = ON_ENGINE,
    .on_queue = ON_ENGINE,
};
