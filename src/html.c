/* html.c - see html.h. Light and dark follow the reader's choice; colours are variables of the root element. */
#include "html.h"

#include <stdio.h>
#include <string.h>

const char HTML_STYLE[] =
    ":root{--bg:#fbfaf7;--ink:#1d1d1b;--soft:#6a6862;--line:#d9d5cb;--card:#fff;--keep:#0b6e63;--drop:#cfcabd;"
    "--mark:#b3261e;--a:#0b6e63;--b:#c98a1b;--c:#6b4fa0;--d:#3b78b5}"
    "@media(prefers-color-scheme:dark){:root{--bg:#171716;--ink:#ecebe6;--soft:#a3a097;--line:#3a3934;"
    "--card:#201f1d;--keep:#5fd0bf;--drop:#4a4841;--mark:#ff8a80;--a:#5fd0bf;--b:#e5b454;--c:#b9a3e8;"
    "--d:#86b9ea}}"
    "*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);"
    "font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}"
    "main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}h1{font-size:24px;margin:0 0 4px}"
    "h2{font-size:17px;margin:36px 0 4px}p{margin:4px 0 10px;color:var(--soft);max-width:76ch}"
    ".card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:14px 16px}"
    "dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(230px,1fr));gap:10px 24px;margin:16px 0}"
    "dt{color:var(--soft);font-size:12.5px}dd{margin:0;overflow-wrap:anywhere}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;font:inherit;margin:0}"
    "svg{display:block;width:100%;height:auto}svg text{fill:var(--ink);font-size:11px;"
    "font-family:inherit}svg .soft{fill:var(--soft)}svg .axis{stroke:var(--line)}"
    "svg .label{font-weight:600;paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round}"
    ".drop{fill:var(--drop)}.keep{fill:url(#hatch);stroke:var(--keep);stroke-width:1.2}"
    "g:hover>.drop,g:hover>.keep{stroke:var(--ink);stroke-width:1.6}"
    ".swatch{display:inline-block;width:28px;height:12px;vertical-align:-1px;margin:0 6px 0 0}"
    "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:13.5px}"
    "th{text-align:left;color:var(--soft);font-weight:500}td,th{padding:4px 10px 4px 0;vertical-align:top;"
    "border-bottom:1px solid var(--line)}td.n,th.n{text-align:right;white-space:nowrap}"
    "tr.k td{font-weight:600}summary{cursor:pointer;padding:8px 0}"
    "@media print{body{background:#fff}details{display:block}}";

int html_escape(struct Str *out, const char *data, size_t len)
{
    for (size_t i = 0; i < len;) {
        unsigned char c = (unsigned char)data[i];
        const char *entity = c == '&'    ? "&amp;"
                             : c == '<'  ? "&lt;"
                             : c == '>'  ? "&gt;"
                             : c == '"'  ? "&quot;"
                             : c == '\'' ? "&#39;"
                                         : NULL;
        size_t step = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
        if (step > len - i) step = 1;
        bool bad = (c < 0x20 && c != '\n' && c != '\t') || c == 0x7F ||
                   utf8_invalid_at(data + i, step) < step;
        if (entity)
            TRY(str_append(out, entity, strlen(entity)));
        else if (bad)
            TRY(str_append(out, "\xEF\xBF\xBD", 3));
        else
            TRY(str_append(out, data + i, step));
        i += bad ? 1 : step;
    }
    return PC_OK;
}

int html_text(struct Str *out, const char *text)
{
    return text ? html_escape(out, text, strlen(text)) : PC_OK;
}

const char *html_count(int64_t n, char text[32])
{
    char plain[24];
    int len = snprintf(plain, sizeof plain, "%lld", (long long)n), to = 0;
    for (int i = 0; i < len; i++) {
        if (i > (plain[0] == '-') && (len - i) % 3 == 0) text[to++] = ',';
        text[to++] = plain[i];
    }
    text[to] = '\0';
    return text;
}
