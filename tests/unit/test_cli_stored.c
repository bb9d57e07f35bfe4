/* The report beside a checkpoint's folder: whether it is of these weights, what the card says of it, and without memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "cli/stored.h"
#include "cli/write.h"
#include "common/alloc.h"
#include "common/json.h"
#include "tests/lib/stored_case.h"

#define DIR "job/mlx"
#define REPORT(bytes, embeddings, head) "{\"recipe\":{\"embeddings\":" #embeddings ",\"lm_head\":" #head "},\"outputs\":{\"mlx\":" \
	"{\"bytes\":" bytes "}},\"perplexity\":[{\"text\":\"a|b\",\"original\":2,\"quantized\":3}]}"

static void write_folder(bool untied)
{
	struct stored_case c;

	mkdir("job", 0755);
	stored_case_init(&c, (struct stored_options){ "llama", untied, 4, 64, KIND_FLOAT, 0, 16, 16, ST_F16 });
	stored_case_write(&c, "mlx", DIR, 0);
	stored_case_deinit(&c);
}

/* `text` names the bytes of the weights as %lld. */
static void put_report(const char *text)
{
	char filled[1024];
	struct stat st;

	assert_int_equal(stat(DIR "/model.safetensors", &st), 0);
	snprintf(filled, sizeof(filled), text, (long long)st.st_size);
	file_put("job", "report.json", filled, strlen(filled));
}

static int card(struct buf *out, struct err *err)
{
	const struct written written = { .bytes = 1 };
	struct stored_folder f;
	int rc = stored_folder_open(&f, DIR, NULL, err);

	if (rc != 0)
		return rc;
	rc = write_card(&f, output_format_find("mlx"), "m", &written, out, err);
	stored_folder_close(&f);
	return rc;
}

#define expect(told) expect_at(told, __LINE__)
static void expect_at(bool told, int line)
{
	struct err err = ERR_INIT;
	struct buf out;

	buf_init(&out, 1 << 20);
	if (card(&out, &err) != 0)
		fail_msg("%s", err.text);
	if ((strstr(buf_text(&out), "| a_b | 2.0000 | 3.0000 | - | - | - |\n") != NULL) != told)
		fail_msg("line %d: %s", line, buf_text(&out));
	assert_int_equal(strstr(buf_text(&out), "## What it cost") != NULL, told);
	buf_deinit(&out);
}

static void test_whose_report(void **state)
{
	(void)state;
	write_folder(false);
	unlink("job/report.json");
	expect(false);
	put_report(REPORT("%lld", 16, 16));
	expect(true);
	put_report(REPORT("%lld1", 16, 16));
	expect(false);
	put_report(REPORT("%lld", 8, 8));
	expect(false);
	put_report(REPORT("%lld", 16, 8)); /* the head is the embedding */
	expect(true);
	put_report("{");
	expect(false);
	put_report("[%lld]");
	expect(false);
	write_folder(true);
	put_report(REPORT("%lld", 16, 16));
	expect(true);
	put_report(REPORT("%lld", 16, 8));
	expect(false);
}

static void test_no_memory(void **state)
{
	bool worked = false;

	(void)state;
	write_folder(false);
	put_report(REPORT("%lld", 16, 16));
	for (uint64_t n = 1; !worked; n++) {
		struct err err = ERR_INIT;
		struct buf out;

		buf_init(&out, 1 << 20);
		mem_fail_after(n);
		worked = card(&out, &err) == 0 && strstr(buf_text(&out), "## What it cost");
		mem_fail_after(0);
		buf_deinit(&out);
		if (!worked)
			assert_int_equal(err.code, ERR_NOMEM);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(test_whose_report), cmocka_unit_test(test_no_memory) };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
