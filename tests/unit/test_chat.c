/* test_chat.c - chat templates: rendered bytes against Jinja2's, detection, names, system
 * messages. */
#include "prompt.h"

#include <cjson/cJSON.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct Slice slice(const char *text)
{
    return (struct Slice){text, strlen(text)};
}

static void assert_ok(int status)
{
    if (status != PC_OK) fail_msg("%d: %s", status, err_text());
}

/* The whole rendering, for one assertion; valid until the next call. */
static const char *rendered(const struct Chat *chat, const char *system, const char *user)
{
    static struct Str all;
    struct ChatText text = {0};
    assert_ok(chat_wrap(chat, system, &text));
    const struct Str *parts[] = {&text.lead, &text.system, &text.open, &text.close};
    str_clear(&all);
    for (int i = 0; i < 4; i++) {
        if (i == 3) assert_ok(str_append(&all, user, strlen(user)));
        assert_ok(str_append(&all, parts[i]->data, parts[i]->len));
    }
    chat_text_free(&text);
    return all.data;
}

static void rendering_check(const struct Chat *chat, const cJSON *item)
{
    const cJSON *system = cJSON_GetObjectItemCaseSensitive(item, "system");
    const char *user = cJSON_GetObjectItemCaseSensitive(item, "user")->valuestring;
    const char *want = cJSON_GetObjectItemCaseSensitive(item, "rendered")->valuestring;
    assert_string_equal(rendered(chat, system->valuestring, user), want);
    if (!system->valuestring) assert_string_equal(rendered(chat, "", user), want);
}

static void test_jinja(void **state)
{
    (void)state;
    struct Str text = {0};
    assert_ok(file_read("tests/golden/chat.json", &text));
    cJSON *json = cJSON_ParseWithLength(text.data, text.len);
    assert_non_null(json);
    const cJSON *item, *rendering;
    int n = 0;
    cJSON_ArrayForEach(item, cJSON_GetObjectItemCaseSensitive(json, "cases"))
    {
        const char *stored = cJSON_GetObjectItemCaseSensitive(item, "template")->valuestring;
        struct Chat chat;
        assert_ok(chat_detect(slice(stored), &chat));
        assert_string_equal(chat_name(chat.kind),
                            cJSON_GetObjectItemCaseSensitive(item, "kind")->valuestring);
        cJSON_ArrayForEach(rendering, cJSON_GetObjectItemCaseSensitive(item, "renderings"))
        {
            rendering_check(&chat, rendering);
            n++;
        }
    }
    assert_in_range(n, 28, 100);
    cJSON_Delete(json);
    str_free(&text);
}

static void test_names(void **state)
{
    (void)state;
    struct Chat chat;
    for (int kind = 0; kind < CHAT_COUNT; kind++) {
        assert_ok(chat_by_name(chat_name((enum ChatTemplate)kind), &chat));
        assert_int_equal(chat.kind, kind);
    }
    assert_int_equal(chat_by_name("lama-3", &chat), PC_ECONFIG);
    assert_non_null(strstr(err_text(), "did you mean 'llama-3'"));
    assert_string_equal(chat_name(CHAT_COUNT), "?");
}

static void test_by_name(void **state)
{
    (void)state;
    struct Chat chat;
    assert_ok(chat_by_name("qwen", &chat));
    assert_string_equal(
        rendered(&chat, NULL, "U"),
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
        "assistant.<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n");
    assert_ok(chat_by_name("chatml", &chat));
    assert_string_equal(rendered(&chat, NULL, "U"),
                        "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n");
    assert_ok(chat_by_name("llama-2", &chat));
    assert_string_equal(rendered(&chat, "S", "U"), "[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST]");
    assert_ok(chat_by_name("mistral", &chat));
    assert_string_equal(rendered(&chat, NULL, "U"), "[INST] U [/INST]");
    assert_ok(chat_by_name("raw", &chat));
    assert_string_equal(rendered(&chat, NULL, "U"), "U");
    assert_string_equal(rendered(&chat, "S", "U"), "S\n\nU");
    assert_string_equal(rendered(&chat, "none", "U"), "U");
}

/* "none" leaves out the default system message and Llama-3.1's dates. */
static void test_no_system(void **state)
{
    (void)state;
    struct Chat chat;
    assert_ok(chat_by_name("qwen", &chat));
    assert_string_equal(rendered(&chat, "none", "U"),
                        "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n");
    assert_ok(chat_detect(
        slice("<|start_header_id|> <|eot_id|> Cutting Knowledge Date: December 2023"), &chat));
    assert_true(*chat.system_lead);
    assert_string_equal(rendered(&chat, "none", "U"),
                        "<|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
                        "<|start_header_id|>assistant<|end_header_id|>\n\n");
}

static void test_unknown(void **state)
{
    (void)state;
    static const char *const UNKNOWN[] = {
        "{{ '<start_of_turn>user\n' + m.content + '<end_of_turn>' }}",
        "<|im_start|>user<|im_sep|>{{ m.content }}<|im_end|>",
        "{{ '[SYSTEM_PROMPT]' + s + '[/SYSTEM_PROMPT][INST]' + m + '[/INST]' }}",
        "x",
    };
    struct Chat chat;
    for (size_t i = 0; i < sizeof(UNKNOWN) / sizeof(*UNKNOWN); i++) {
        assert_int_equal(chat_detect(slice(UNKNOWN[i]), &chat), PC_EFORMAT);
        assert_non_null(strstr(err_text(), "--chat-template"));
    }
    assert_ok(chat_detect((struct Slice){NULL, 0}, &chat));
    assert_int_equal(chat.kind, CHAT_RAW);
}

/* Cut anywhere, a template must not be read past its end; a long default message is refused. */
static void test_odd_templates(void **state)
{
    (void)state;
    static const char TEXT[] =
        "{{ '<|im_start|>system\\nYou are it.<|im_end|>\\n' }} ' [INST] ' '[/INST]'";
    struct Chat chat;
    for (size_t len = 0; len < sizeof(TEXT); len++) {
        char *copy = malloc(len ? len : 1);
        memcpy(copy, TEXT, len);
        chat_detect((struct Slice){copy, len}, &chat);
        free(copy);
    }
    struct Str text = {0};
    assert_ok(str_appendf(&text, "'<|im_start|>system\\n%0600d<|im_end|>'", 1));
    assert_int_equal(chat_detect((struct Slice){text.data, text.len}, &chat), PC_EFORMAT);
    assert_non_null(strstr(err_text(), "--chat-template chatml"));
    str_free(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_jinja),   cmocka_unit_test(test_names),
        cmocka_unit_test(test_by_name), cmocka_unit_test(test_no_system),
        cmocka_unit_test(test_unknown), cmocka_unit_test(test_odd_templates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
