/* tokenize TOKENIZER.JSON - ids of many texts, for comparisons with other implementations.
 *
 * stdin: for each text a line "<bytes> <special 0|1>\n", then that many bytes.
 * stdout: for each text one line of ids, or "! <error>". A tokenizer that cannot be loaded ends the
 * program with status 1 and the reason on stderr.
 */
#include <stdio.h>

#include "common/alloc.h"
#include "common/file.h"
#include "worker/model/tokenizer.h"

#define FILE_BYTES_MAX ((size_t)1 << 30)

static struct tokenizer *open_tokenizer(const char *path, struct err *err)
{
	struct tokenizer *t;
	size_t len;
	char *text = file_read_all(path, FILE_BYTES_MAX, &len, err);

	if (!text)
		return NULL;
	t = tokenizer_new(text, len, err);
	mem_free(text);
	return t;
}

static void print_ids(const struct token_list *ids)
{
	for (size_t i = 0; i < ids->count; i++)
		printf(i ? " %d" : "%d", (int)ids->ids[i]);
	printf("\n");
}

/* One text; 0, or -1 at the end of input. */
static int answer(const struct tokenizer *t)
{
	struct token_list ids = { 0 };
	struct err err = ERR_INIT;
	unsigned long len;
	int special;
	char *text;

	if (scanf("%lu %d", &len, &special) != 2 || getchar() != '\n')
		return -1;
	text = mem_alloc(len + 1, 1);
	if (!text || fread(text, 1, len, stdin) != len) {
		mem_free(text);
		return -1;
	}
	if (tokenizer_encode(t, text, len, special != 0, &ids, &err) == 0)
		print_ids(&ids);
	else
		printf("! %s\n", err.text);
	token_list_deinit(&ids);
	mem_free(text);
	return 0;
}

int main(int argc, char **argv)
{
	struct err err = ERR_INIT;
	struct tokenizer *t;

	if (argc != 2) {
		fprintf(stderr, "usage: tokenize TOKENIZER.JSON\n");
		return 2;
	}
	t = open_tokenizer(argv[1], &err);
	if (!t) {
		fprintf(stderr, "%s\n", err.text);
		return 1;
	}
	while (answer(t) == 0)
		;
	tokenizer_free(t);
	return 0;
}
