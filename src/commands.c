/* commands.c - pcomp: its tables of flags and commands. The commands are in cmd_run.c, cmd_store.c,
 * cmd_plan.c, cmd_bench.c and summarize.c.
 */
#include "calib/passkey.h"
#include "cli.h"

enum {
    ON_RUN = 1,
    ON_SUMMARIZE = 2,
    ON_DEMO = 4,
    ON_PLAN = 8,
    ON_BENCH = 16,
    ON_INSPECT = 32,
    ON_PERPLEXITY = 64,
    ON_SETTINGS = 128,
    ON_COMPLETION = 256,
    ON_HELP = 512,
    ON_CALIBRATE = 1024,
    ON_INDEX = 2048,
    ON_ASK = 4096,
    /* Commands that open a model with settings. */
    ON_ENGINE = ON_RUN | ON_SUMMARIZE | ON_DEMO | ON_PLAN | ON_BENCH | ON_PERPLEXITY |
                ON_CALIBRATE | ON_INDEX | ON_ASK,
    ON_ALL = 8191,
};

#define AT(field) offsetof(struct Cli, field)

enum {
    ON_TEXT = ON_RUN | ON_DEMO | ON_PLAN | ON_BENCH | ON_PERPLEXITY | ON_CALIBRATE | ON_INDEX,
    ON_ANSWERS = ON_RUN | ON_DEMO | ON_ASK
};

static const struct Flag FLAGS[] = {
    {"model", 'm', FLAG_TEXT, AT(model), 0, 0, ON_ENGINE | ON_INSPECT, "FILE",
     "model: a .gguf file or a safetensors folder (default: $PCOMP_MODEL, else models/)"},
    {"geometry", 0, FLAG_TEXT, AT(geometry), 0, 0,
     ON_RUN | ON_DEMO | ON_PLAN | ON_BENCH | ON_INDEX | ON_ASK, "NAME[:TYPE]",
     "random weights of a published shape, to measure speed and memory: llama3-8b, llama2-7b, "
     "qwen2.5-7b, smollm2-135m, qwen2.5-0.5b, tiny; TYPE bf16 (default), q8_0, q4_k ..."},
    {"file", 'f', FLAG_LIST, AT(files), 0, 0, ON_TEXT | ON_SUMMARIZE, "FILE",
     "text to read; repeat for several, - for standard input"},
    {"question", 'q', FLAG_LIST, AT(questions), 0, 0,
     ON_ANSWERS | ON_PLAN | ON_SUMMARIZE | ON_CALIBRATE, "TEXT",
     "question; repeat for several, each gets an answer"},
    {"questions", 'Q', FLAG_TEXT, AT(questions_file), 0, 0, ON_RUN | ON_CALIBRATE | ON_ASK, "FILE",
     "file with one question a line"},
    {"number", 'n', FLAG_SETTING, 0, 0, 0, ON_ENGINE, "max_tokens", "same as --max-tokens"},
    {"jobs", 't', FLAG_SETTING, 0, 0, 0, ON_ENGINE, "threads", "same as --threads"},
    {"config", 'c', FLAG_TEXT, AT(config), 0, 0, ON_ENGINE, "FILE", "settings from a JSON file"},
    {"json", 0, FLAG_SWITCH, AT(json), 0, 0,
     ON_ANSWERS | ON_PLAN | ON_INSPECT | ON_PERPLEXITY | ON_INDEX, "",
     "one JSON object on standard output, with full provenance"},
    {"jsonl", 0, FLAG_SWITCH, AT(jsonl), 0, 0, ON_ANSWERS, "",
     "JSON events on standard output, one a line"},
    {"explain", 0, FLAG_TEXT, AT(explain), 0, 0, ON_ANSWERS, "FILE.html",
     "write a page that shows which chunks and tokens were kept"},
    {"plan", 0, FLAG_SWITCH, AT(plan), 0, 0, ON_RUN | ON_DEMO | ON_SUMMARIZE, "",
     "say what the run would need, and stop"},
    {"ranks", 0, FLAG_INT, AT(ranks), 1, 64, ON_ANSWERS, "N",
     "processes of this machine that share the work, a GPU each where there are so many; mpirun does the same for several "
     "machines"},
    {"tokens", 0, FLAG_INT, AT(tokens), 64, 1 << 28, ON_DEMO | ON_BENCH | ON_CALIBRATE, "N",
     "tokens of text to read (demo: 131072; bench: 2048 and 8192; calibrate bias: 8192, chunks: 12 chunks)"},
    {"depth", 0, FLAG_REAL, AT(depth), 0, 1, ON_DEMO, "X",
     "where the demo hides its sentence: 0 start, 1 end (default 0.5)"},
    {"no-needle", 0, FLAG_SWITCH, AT(no_needle), 0, 0, ON_DEMO, "",
     "hide no sentence; ask -q of the book itself"},
    {"output", 'o', FLAG_TEXT, AT(output), 0, 0, ON_SUMMARIZE, "FILE",
     "results, appended as JSON lines (default summaries.jsonl)"},
    {"output", 'o', FLAG_TEXT, AT(output), 0, 0, ON_INDEX, "STORE",
     "file that keeps the text for `pcomp ask`"},
    {"store", 0, FLAG_TEXT, AT(store_dir), 0, 0, ON_RUN | ON_SUMMARIZE, "DIR",
     "keep texts there as `pcomp index` does: a second command on the same text reads nothing again"},
    {"text-dir", 0, FLAG_TEXT, AT(text_dir), 0, 0, ON_SUMMARIZE, "DIR",
     "also write each summary as a .txt file"},
    {"glob", 0, FLAG_TEXT, AT(glob), 0, 0, ON_SUMMARIZE, "PATTERN",
     "files to take from a folder (default *.txt and *.md)"},
    {"fresh", 0, FLAG_SWITCH, AT(fresh), 0, 0, ON_SUMMARIZE, "",
     "keep results made with other settings in the file and make new ones"},
    {"share", 0, FLAG_SWITCH, AT(share), 0, 0, ON_SUMMARIZE, "",
     "let other processes with the same --output take part, as in a job array; on by itself under mpirun and srun"},
    {"fresh", 0, FLAG_SWITCH, AT(fresh), 0, 0, ON_INDEX, "",
     "replace the store of another text or other settings"},
    {"repeats", 'r', FLAG_INT, AT(repeats), 1, 1000, ON_BENCH, "N", "repetitions (default 5)"},
    {"format", 0, FLAG_TEXT, AT(format), 0, 0, ON_BENCH, "md|csv|json",
     "table to print (default md)"},
    {"tail", 0, FLAG_INT, AT(tail), 1, 1 << 24, ON_PERPLEXITY, "N",
     "last tokens that are scored (default 1024; not for --method full)"},
    {"output", 'o', FLAG_TEXT, AT(output), 0, 0, ON_CALIBRATE, "DIR",
     "folder for tables, JSON and pictures (heads: default none, only the table is printed)"},
    {"score", 0, FLAG_TEXT, AT(score), 0, 0, ON_CALIBRATE, "METHOD",
     "ablate (default), alone, deviate, mass, copy, echo, rope, random"},
    {"len", 0, FLAG_TEXT, AT(len), 0, 0, ON_CALIBRATE, "LIST",
     "tokens of the samples, as 1024,4096 (default: by the window)"},
    {"samples", 0, FLAG_INT, AT(samples), 1, 1000, ON_CALIBRATE, "N",
     "heads: samples that are scored (default 8), half as many more are held out for the report; bias: questions "
     "made from the text where none are given (default 16); chunks: texts that choose, and as many that report (default 4)"},
    {"passkeys", 0, FLAG_INT, AT(passkeys), 1, PASSKEYS_MAX, ON_CALIBRATE, "N",
     "passkeys hidden in a sample (default 10)"},
    {"words", 0, FLAG_INT, AT(words), 1, PASSKEY_WORDS_MAX, ON_CALIBRATE, "N",
     "words of a passkey (default 8)"},
    {"sink", 0, FLAG_INT, AT(sink), 1, 1 << 16, ON_CALIBRATE, "N",
     "first tokens that a streaming head keeps (default 64)"},
    {"recent", 0, FLAG_INT, AT(recent), 1, 1 << 20, ON_CALIBRATE, "N",
     "last tokens that it keeps (default 256)"},
    {"ratio", 0, FLAG_REAL, AT(ratio), 0, 1, ON_CALIBRATE, "X",
     "share of KV heads that keep everything (default 0.5)"},
    {"tol", 0, FLAG_TEXT, AT(tol), 0, 0, ON_CALIBRATE, "T",
     "find the lowest ratio whose joint KL is at most T nats, or T% for the loss of exact answers"},
    {"refine", 0, FLAG_INT, AT(refine), 1, 100000, ON_CALIBRATE, "M",
     "try M exchanges of heads around the cut"},
    {"compare", 0, FLAG_SWITCH, AT(compare), 0, 0, ON_CALIBRATE, "",
     "report every other way to score, too"},
    {"progress", 0, FLAG_TEXT, AT(progress), 0, 0, ON_ENGINE, "auto|none|plain|json",
     "progress on standard error"},
    {"markdown", 0, FLAG_SWITCH, AT(markdown), 0, 0, ON_SETTINGS, "", "as a Markdown table"},
    {"quiet", 0, FLAG_SWITCH, AT(quiet), 0, 0, ON_ALL, "", "errors only on standard error"},
    {"verbose", 'v', FLAG_SWITCH, AT(verbose), 0, 0, ON_ALL, "", "say more on standard error"},
    {"log-file", 0, FLAG_TEXT, AT(log_file), 0, 0, ON_ALL, "FILE",
     "append what goes to standard error to a file instead"},
    {"help", 'h', FLAG_SWITCH, AT(help), 0, 0, ON_ALL, "", "this help"},
    {"version", 0, FLAG_SWITCH, AT(version), 0, 0, ON_ALL, "", "version, build and device"},
};

/* Summaries keep every chunk: a summary of two chunks out of many would not cover the text. */
static const char *const SUMMARY_DEFAULTS[] = {
    "keep", "all", "instruction", "Summarise the following text.", "max_tokens", "256", NULL};
static const char *const DEMO_DEFAULTS[] = {"max_tokens", "24", NULL};

static const struct Command COMMANDS[] = {
    {"run", ON_RUN, cmd_run, "answer questions about a text of any length",
     "pcomp run [-m MODEL] [-f FILE]... -q QUESTION [-n TOKENS]",
     "Reads the files (or standard input) as one text and prints the answer to each question. Several\n"
     "files are joined with a blank line between two; several questions get one answer each.",
     "pcomp run -f book.txt -q 'Who is the ward of Mr. Jarndyce?' -n 64", NULL, NULL},
    {"summarize", ON_SUMMARIZE, cmd_summarize, "summarise many texts; can be stopped and resumed",
     "pcomp summarize [-m MODEL] [-o OUT.jsonl] [--text-dir DIR] FILE|FOLDER|LIST.jsonl...",
     "Appends one JSON line for each text. Run the same command again to go on where it stopped:\n"
     "what is finished is skipped, errors are tried again. A .jsonl input holds lines of\n"
     "{\"id\",\"file\"|\"text\",\"question\"} or OpenAI batch requests.",
     "pcomp summarize -o notes.jsonl --text-dir notes/ papers/", SUMMARY_DEFAULTS, NULL},
    {"index", ON_INDEX, cmd_index, "read a text once and keep it for many questions",
     "pcomp index [-m MODEL] [-f FILE]... -o STORE",
     "Keeps the text with the keys and values of all its tokens (for a model of 135M parameters 3 GB for\n"
     "128K tokens) in one file. A stopped command goes on when it is repeated. The settings that shape\n"
     "chunks (chunk, overlap, window, instruction ...) are the store's from then on; keep, kv_cap,\n"
     "chunk_score and the others are chosen with each question. --kv-cap N makes the store smaller: each\n"
     "head has N tokens of a chunk, chosen without knowing any question; answers and the scores of chunks\n"
     "then come from these alone.",
     "pcomp index book.txt -o book.pcstore", NULL, NULL},
    {"ask", ON_ASK, cmd_ask, "answer questions about a text that was indexed",
     "pcomp ask [-m MODEL] STORE -q QUESTION [-n TOKENS]",
     "Answers as `pcomp run` would, without reading the text again: only the question is computed against\n"
     "each chunk. Takes the model and the device that the store was made with.",
     "pcomp ask book.pcstore -q 'Who is the ward of Mr. Jarndyce?' -n 64", NULL, NULL},
    {"demo", ON_DEMO, cmd_demo, "find one sentence hidden in a book of 131,072 tokens",
     "pcomp demo [-m MODEL] [-f BOOK] [--tokens N] [--depth X] [-q QUESTION | --no-needle -q QUESTION]",
     "Reads the first N tokens of a real book into which one made-up sentence was put, and asks for it.",
     "pcomp demo --tokens 131072 --depth 0.25", DEMO_DEFAULTS, NULL},
    {"plan", ON_PLAN, cmd_plan, "tokens, chunks, memory and time of a run, without running it",
     "pcomp plan [-m MODEL] [-f FILE]... [-q QUESTION]",
     "Exits 4 when the run does not fit into memory.", "pcomp plan -f book.txt --memory 2G", NULL,
     NULL},
    {"bench", ON_BENCH, cmd_bench, "measure prefill, decode and single operations",
     "pcomp bench [prefill|decode|ops|text|paper|all] [-r REPEATS] [--tokens N] [--format md|csv|json]",
     "Prints the mean and standard deviation over the repeats.",
     "pcomp bench prefill -r 3 --format csv", NULL, "prefill decode ops text paper all"},
    {"inspect", ON_INSPECT, cmd_inspect, "what is in a model file", "pcomp inspect [--json] MODEL",
     "Prints metadata, shapes, tensor types and facts about the vocabulary.",
     "pcomp inspect models/SmolLM2-135M-Instruct.Q4_1.gguf", NULL, NULL},
    {"perplexity", ON_PERPLEXITY, cmd_perplexity,
     "how well a model predicts a text under each method",
     "pcomp perplexity [-m MODEL] -f FILE [--method full|parallelcomp|truncate] [--tail N]",
     "full: every token, in windows. Otherwise the last N tokens given the compressed rest.",
     "pcomp perplexity -f book.txt --method full --window 2048", NULL, NULL},
    {"calibrate", ON_CALIBRATE, cmd_calibrate,
     "measure a model: which heads must remember, which tokens draw too much, which chunks can leave early",
     "pcomp calibrate heads|bias|chunks [MODEL] [-f FILE]... [-o DIR]",
     "heads: hides passkeys in a text (made-up prose, or -f FILE), confines one KV head after another to the\n"
     "first and last tokens, and scores each by what that does to the answers. No training. --method\n"
     "parallelcomp (the default) measures heads on chunks with reused positions, --method full on one sequence.\n"
     "-o DIR gets full_attention_heads.tsv and config.json (DuoAttention's), headwise.json (RTP-LLM's),\n"
     "heads.json and heads.svg.\n"
     "bias: where questions look, by layer, head and place in the chunk, drawn in DIR/bias.html; and\n"
     "calibration rules against it, in DIR/calib.json, if any help.\n"
     "chunks: hides facts in texts and asks for them: behind which layer, and by which heads, can one tell which\n"
     "chunks hold no answer? DIR/chunks.json is a profile for --early, by itself found in configs/chunks. -f also\n"
     "takes .jsonl files of rows {\"context\",\"question\",\"answer\"}.",
     "pcomp calibrate heads models/SmolLM2-135M-Instruct.Q4_1.gguf -o heads/", NULL,
     "heads bias chunks"},
    {"settings", ON_SETTINGS, cmd_settings, "every setting with its default and limits",
     "pcomp settings [--markdown]",
     "A setting is a key of a --config file, a flag (--kv-cap) and a variable (PCOMP_KV_CAP).",
     "pcomp settings --markdown", NULL, NULL},
    {"completion", ON_COMPLETION, cmd_completion, "completions for a shell",
     "pcomp completion bash|zsh", "Prints a script for the shell to read.",
     "source <(pcomp completion bash)", NULL, "bash zsh"},
    {"help", ON_HELP, cmd_help, "help on a command", "pcomp help [COMMAND]", "", "pcomp help run",
     NULL, NULL},
};

const struct Program PCOMP = {
    .name = "pcomp",
    .about = "answers over texts longer than the model was trained for",
    .commands = COMMANDS,
    .n_commands = sizeof COMMANDS / sizeof COMMANDS[0],
    .flags = FLAGS,
    .n_flags = sizeof FLAGS / sizeof FLAGS[0],
    .on_engine = ON_ENGINE,
    .on_team = ON_RUN | ON_ASK | ON_DEMO,
    .on_queue = ON_SUMMARIZE,
};
