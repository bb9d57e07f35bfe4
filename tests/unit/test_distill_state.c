/* The files of a training state without any training: small layers of known floats. What was committed is found again,
 * whatever is damaged or belongs to somebody else is not, and every call may fail once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "worker/distill_state.h"

enum { LAYERS = 3, PATH_BYTES = 256, FILE_MOST = 1 << 20 };

static const size_t sizes[LAYERS] = { 5, 1, 1000 };

static struct distill_owner owner_of(char id)
{
	struct distill_owner owner = { .backend = "ref", .exact = "ref here", .layers = LAYERS, .floats = sizes };

	memset(owner.identity, id, DIGEST_HEX - 1);
	return owner;
}

static float value(size_t layer, size_t i, int version)
{
	return (float)(1000 * (int)layer + 7 * (int)i + 100000 * version);
}

/* Not flushed: thousands of these would be slow. */
static void put(const char *path, const void *bytes, size_t len)
{
	FILE *f = fopen(path, "wb");

	assert_non_null(f);
	assert_int_equal(fwrite(bytes, 1, len, f), len);
	assert_int_equal(fclose(f), 0);
}

/* One change of all layers; fails where a fault was planted. */
static int write_version(struct distill_state *s, int version, bool commit_follows, struct err *err)
{
	float x[1000];

	distill_state_begin(s, commit_follows);
	for (size_t l = 0; l < LAYERS; l++) {
		for (size_t i = 0; i < sizes[l]; i++)
			x[i] = value(l, i, version);
		if (distill_state_write(s, l, x, err) != 0)
			return -1;
	}
	distill_state_end(s);
	return 0;
}

static int keep_best(struct distill_state *s, int version, struct err *err)
{
	for (size_t l = 0; l < LAYERS; l++) {
		char *path = distill_state_best_path(s, l, err), text[64];

		snprintf(text, sizeof(text), "layer %zu of version %d", l, version);
		if (!path)
			return -1;
		put(path, text, strlen(text));
		mem_free(path);
	}
	if (distill_state_take_best(s, err) != 0)
		return -1;
	s->progress.best_probe = version;
	return 0;
}

/* Steps up to `version`, the last one committed, with a best when `best`. */
static int train_to(struct distill_state *s, int version, bool best, struct err *err)
{
	for (int v = (int)s->progress.step; v < version; v++)
		if (write_version(s, v + 1, v + 1 == version, err) != 0)
			return -1;
	if (best && keep_best(s, version, err) != 0)
		return -1;
	s->progress.step = version;
	s->progress.probes = 1;
	s->progress.before = (struct distill_loss){ 0.1, 1.0 / 3 };
	s->progress.best = (struct distill_loss){ 0.05, 1.0 / 7 };
	s->progress.sum = (struct distill_loss){ 1e-300, 3e8 };
	s->progress.summed = 2;
	s->progress.curve[0] = (struct distill_point){ 1, { 0.1, 0.2 } };
	s->progress.curve[1] = (struct distill_point){ 2, { 0.3, 1.0 / 9 } };
	s->progress.curve_count = 2;
	return distill_state_commit(s, err);
}

static void assert_holds(struct distill_state *s, int version, bool best)
{
	struct err err = ERR_INIT;
	float x[1000];

	for (size_t l = 0; l < LAYERS; l++) {
		size_t len;
		char *text, want[64];

		if (distill_state_read(s, l, x, 0, 0, &err) != 0)
			fail_msg("%s", err.text);
		for (size_t i = 0; i < sizes[l]; i++)
			assert_true(x[i] == value(l, i, version));
		if (!best)
			continue;
		assert_int_equal(distill_state_copy_best(s, l, "copied", &err), 0);
		text = file_read_all("copied", FILE_MOST, &len, &err);
		snprintf(want, sizeof(want), "layer %zu of version %d", l, version);
		assert_string_equal(text, want);
		mem_free(text);
	}
}

static struct distill_state must_open(const char *dir, char id, bool expected)
{
	struct distill_owner owner = owner_of(id);
	struct distill_state s;
	struct err err = ERR_INIT;
	bool found;

	if (distill_state_open(&s, dir, &owner, &found, &err) != 0)
		fail_msg("%s", err.text);
	if (found != expected)
		fail_msg("%s: a state was %sfound", dir, found ? "" : "not ");
	assert_int_equal(s.committed, expected);
	return s;
}

static void copy_if_there(const char *from_dir, const char *to_dir, const char *name)
{
	char from[PATH_BYTES], to[PATH_BYTES];
	struct err err = ERR_INIT;

	snprintf(from, sizeof(from), "%s/%s", from_dir, name);
	snprintf(to, sizeof(to), "%s/%s", to_dir, name);
	if (file_exists(from) && distill_file_copy(from, to, NULL, &err) != 0)
		fail_msg("%s", err.text);
}

static void copy_state(const char *from, const char *to)
{
	static const char *const folders[] = { "state-0", "state-1", "best-0", "best-1" };
	char path[PATH_BYTES];
	struct err err = ERR_INIT;

	for (size_t f = 0; f < 4; f++) {
		snprintf(path, sizeof(path), "%s/%s", to, folders[f]);
		assert_int_equal(dir_make(path, &err), 0);
		for (size_t l = 0; l < LAYERS; l++) {
			snprintf(path, sizeof(path), "%s/layer-%zu", folders[f], l);
			copy_if_there(from, to, path);
		}
	}
	copy_if_there(from, to, "manifest.json");
}

/* A folder with a state that was trained to `version` in one go: made once, since commits are flushed, then copied. */
static void make(const char *dir, int version, bool best)
{
	struct err err = ERR_INIT;
	struct distill_state s;
	char base[PATH_BYTES];

	snprintf(base, sizeof(base), "base-%d-%d", version, best);
	if (!file_exists(base)) {
		s = must_open(base, 'a', false);
		if (train_to(&s, version, best, &err) != 0)
			fail_msg("%s", err.text);
		distill_state_close(&s);
	}
	assert_int_equal(dir_remove(dir, &err), 0);
	copy_state(base, dir);
}

/* --- what was committed ------------------------------------------------------------------------------- */

static void test_found_again(void **state)
{
	struct distill_state s;

	(void)state;
	make("again", 3, true);
	s = must_open("again", 'a', true);
	assert_holds(&s, 3, true);
	assert_int_equal(s.progress.step, 3);
	assert_int_equal(s.progress.probes, 1);
	assert_int_equal(s.progress.best_probe, 3);
	assert_int_equal(s.progress.summed, 2);
	assert_true(s.progress.before.hidden == 1.0 / 3 && s.progress.best.hidden == 1.0 / 7);
	assert_true(s.progress.sum.kl == 1e-300 && s.progress.sum.hidden == 3e8);
	assert_int_equal(s.progress.curve_count, 2);
	assert_true(s.progress.curve[1].step == 2 && s.progress.curve[1].loss.hidden == 1.0 / 9);
	distill_state_close(&s);
}

/* Steps after a commit, in whatever number, and half of one, leave the commit alone. */
static void test_what_follows_does_no_harm(void **state)
{
	struct err err = ERR_INIT;
	struct distill_state s;
	float x[1000] = { 0 };

	(void)state;
	make("after", 4, true);
	for (int steps = 1; steps <= 3; steps++) {
		s = must_open("after", 'a', true);
		for (int i = 0; i < steps; i++)
			assert_int_equal(write_version(&s, 50 + i, i % 2 == 0, &err), 0);
		assert_holds(&s, 50 + steps - 1, false);
		assert_int_equal(keep_best(&s, 60, &err), 0);
		distill_state_begin(&s, true);
		assert_int_equal(distill_state_write(&s, 1, x, &err), 0);
		distill_state_close(&s);
		s = must_open("after", 'a', true);
		assert_holds(&s, 4, true);
		distill_state_close(&s);
	}
}

static void test_parts_of_a_layer(void **state)
{
	struct err err = ERR_INIT;
	struct distill_state s;
	float x[1000];

	(void)state;
	make("parts", 2, false);
	s = must_open("parts", 'a', true);
	for (size_t i = 0; i < sizes[2]; i++)
		x[i] = -1;
	assert_int_equal(distill_state_read(&s, 2, x, 10, 990, &err), 0);
	for (size_t i = 0; i < sizes[2]; i++)
		assert_true(x[i] == (i >= 10 && i < 990 ? -1 : value(2, i, 2)));
	distill_state_close(&s);
}

/* --- what does not count --------------------------------------------------------------------------------- */

static void flip_byte(const char *path, size_t at)
{
	struct err err = ERR_INIT;
	size_t len;
	char *bytes = file_read_all(path, FILE_MOST, &len, &err);

	assert_non_null(bytes);
	bytes[at % len] = (char)(bytes[at % len] ^ 1);
	put(path, bytes, len);
	mem_free(bytes);
}

static void assert_forgotten(const char *dir)
{
	struct distill_state s = must_open(dir, 'a', false);
	struct err err = ERR_INIT;

	/* and a new start is possible */
	assert_int_equal(s.progress.step, 0);
	assert_int_equal(train_to(&s, 2, true, &err), 0);
	distill_state_close(&s);
	s = must_open(dir, 'a', true);
	assert_holds(&s, 2, true);
	distill_state_close(&s);
}

static void test_damaged_files(void **state)
{
	char path[PATH_BYTES];

	(void)state;
	for (size_t l = 0; l < LAYERS; l++)
		for (int what = 0; what < 6; what++) {
			make("damaged", 3, true);
			/* the first commit: state of generation 0, best of generation 1 */
			snprintf(path, sizeof(path), "damaged/%s/layer-%zu", what % 2 ? "best-1" : "state-0", l);
			assert_true(file_exists(path));
			if (what < 2)
				flip_byte(path, 3);
			else if (what < 4)
				assert_int_equal(truncate(path, 2), 0);
			else
				assert_int_equal(unlink(path), 0);
			assert_forgotten("damaged");
		}
}

static void test_another_owner(void **state)
{
	static const size_t other_sizes[LAYERS] = { 5, 1, 999 };
	struct distill_owner owner = owner_of('a');
	struct err err = ERR_INIT;
	struct distill_state s;
	bool found;

	(void)state;
	make("owner", 3, false);
	s = must_open("owner", 'b', false);
	distill_state_close(&s);
	owner.floats = other_sizes;
	assert_int_equal(distill_state_open(&s, "owner", &owner, &found, &err), 0);
	assert_false(found);
	distill_state_close(&s);
	owner = owner_of('a');
	owner.exact = "ref elsewhere";
	assert_int_equal(distill_state_open(&s, "owner", &owner, &found, &err), 0);
	assert_false(found);
	distill_state_close(&s);
	s = must_open("owner", 'a', true);
	distill_state_close(&s);
}

/* A manifest that is whole, but of another version or makes no sense. */
static void test_edited_manifest(void **state)
{
	static const char *const edits[][2] = {
		{ "\"format\":1", "\"format\":2" }, { "\"format\":1", "\"formal\":1" },
		{ "\"identity\":\"a", "\"identity\":\"b" }, { "\"backend\":\"ref\"", "\"backend\":\"cpu\"" },
		{ "\"exact\":\"ref", "\"exact\":\"cpu" }, { "\"step\":3", "\"step\":x" }, { "\"step\":3", "\"stop\":3" },
		{ "\"probes\":1", "\"probes\":-" }, { "\"best_probe\":3", "\"best_probe\":0" },
		{ "\"summed\":2", "\"summer\":2" }, { "\"before\":[0.1", "\"before\":[\".1" },
		{ "\"before\":[0.1,", "\"before\":[0.1 " }, { "\"best\":[", "\"bets\":[" }, { "\"sum\":[", "\"mus\":[" },
		{ "\"curve\":[[1", "\"curve\":[{1" }, { "\"curve\":[[1,", "\"curve\":[[.," }, { "[[1,0.1", "[[1,\"1\"" },
		{ "\"state_generation\":0", "\"state_generation\":2" }, { "\"best_generation\":1", "\"best_generation\":7" },
		{ "\"state_generation\":0", "\"state_generation\":1" }, { "\"best_generation\":1", "\"best_generation\":0" },
		{ "\"state_files\":[\"", "\"state_files\":[ " }, { "\"state_files\":", "\"state_piles\":" },
		{ "\"best_files\":", "\"best_piles\":" },
	};
	struct err err = ERR_INIT;

	(void)state;
	for (size_t i = 0; i < sizeof(edits) / sizeof(edits[0]); i++) {
		size_t len;
		char *text, *at;

		make("edited", 3, true);
		text = file_read_all("edited/manifest.json", FILE_MOST, &len, &err);
		at = strstr(text, edits[i][0]);
		if (!at || strlen(edits[i][0]) != strlen(edits[i][1]))
			fail_msg("no such edit: %s", edits[i][0]);
		memcpy(at, edits[i][1], strlen(edits[i][1]));
		put("edited/manifest.json", text, len);
		mem_free(text);
		assert_forgotten("edited");
	}
}

static void test_manifest_of_noise(void **state)
{
	static const char *const texts[] = { "", "{", "[]", "null", "{}", "\"format\"" };

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		make("noise", 3, false);
		put("noise/manifest.json", texts[i], strlen(texts[i]));
		assert_forgotten("noise");
	}
}

/* Every byte of the manifest: what a flipped bit makes of it is refused, or a number that nobody can miss; never a crash. */
static void test_every_byte_of_the_manifest(void **state)
{
	struct distill_owner owner = owner_of('a');
	struct err err = ERR_INIT;
	size_t len;
	char *text;

	(void)state;
	make("bytes", 3, true);
	text = file_read_all("bytes/manifest.json", FILE_MOST, &len, &err);
	for (size_t i = 0; i < len; i++) {
		struct distill_state s;
		bool found;

		put("bytes/manifest.json", text, len);
		flip_byte("bytes/manifest.json", i);
		assert_int_equal(distill_state_open(&s, "bytes", &owner, &found, &err), 0);
		if (found)
			assert_holds(&s, 3, s.progress.best_probe > 0);
		distill_state_close(&s);
	}
	mem_free(text);
}

/* --- packed -------------------------------------------------------------------------------------------------- */

static void pack(const char *dir, const char *path)
{
	struct distill_state s = must_open(dir, 'a', true);
	struct err err = ERR_INIT;

	if (distill_state_pack(&s, path, &err) != 0)
		fail_msg("%s", err.text);
	distill_state_close(&s);
}

static bool unpack(struct distill_state *s, const char *path)
{
	struct err err = ERR_INIT;
	bool taken;

	if (distill_state_unpack(s, path, &taken, &err) != 0)
		fail_msg("%s", err.text);
	return taken;
}

static void test_packed_and_unpacked(void **state)
{
	struct distill_owner elsewhere = owner_of('a');
	struct err err = ERR_INIT;
	struct distill_state s;
	bool found;

	(void)state;
	for (int best = 0; best < 2; best++) {
		make("giver", 3, best);
		pack("giver", "packed");
		assert_int_equal(dir_remove("taker", &err), 0);
		elsewhere.exact = "ref elsewhere"; /* the same backend on another machine */
		assert_int_equal(distill_state_open(&s, "taker", &elsewhere, &found, &err), 0);
		assert_false(found);
		assert_true(unpack(&s, "packed"));
		assert_holds(&s, 3, best);
		assert_int_equal(s.progress.step, 3);
		/* it goes on from there, and is found again */
		assert_int_equal(train_to(&s, 5, best, &err), 0);
		distill_state_close(&s);
		assert_int_equal(distill_state_open(&s, "taker", &elsewhere, &found, &err), 0);
		assert_true(found);
		assert_holds(&s, 5, best);
		distill_state_close(&s);
	}
}

static void test_only_what_is_further(void **state)
{
	struct distill_state s;

	(void)state;
	make("giver", 3, true);
	pack("giver", "packed");
	make("ahead", 4, true);
	s = must_open("ahead", 'a', true);
	assert_false(unpack(&s, "packed"));
	assert_holds(&s, 4, true);
	distill_state_close(&s);
	make("even", 3, true);
	s = must_open("even", 'a', true);
	assert_false(unpack(&s, "packed"));
	distill_state_close(&s);
	make("behind", 2, true);
	s = must_open("behind", 'a', true);
	assert_true(unpack(&s, "packed"));
	assert_holds(&s, 3, true);
	distill_state_close(&s);
	s = must_open("behind", 'a', true);
	assert_holds(&s, 3, true);
	distill_state_close(&s);
}

static void test_packed_by_somebody_else(void **state)
{
	struct distill_state s;

	(void)state;
	make("giver", 3, true);
	pack("giver", "packed");
	s = must_open("stranger", 'b', false);
	assert_false(unpack(&s, "packed"));
	assert_false(unpack(&s, "absent"));
	distill_state_close(&s);
}

/* Every eighth byte, and every length: refused, and what was there before stays. */
static void test_damaged_pack(void **state)
{
	struct err err = ERR_INIT;
	struct distill_state s;
	size_t len;
	char *bytes;

	(void)state;
	make("giver", 3, true);
	pack("giver", "packed");
	bytes = file_read_all("packed", FILE_MOST, &len, &err);
	make("held", 2, true);
	s = must_open("held", 'a', true);
	for (size_t i = 0; i < len; i += 8) {
		put("packed", bytes, len);
		flip_byte("packed", i);
		if (unpack(&s, "packed")) { /* a digit of the curve, or of a loss */
			distill_state_close(&s);
			make("held", 2, true);
			s = must_open("held", 'a', true);
		}
		assert_holds(&s, 2, true);
		put("packed", bytes, i);
		assert_false(unpack(&s, "packed"));
	}
	mem_free(bytes);
	distill_state_close(&s);
	s = must_open("held", 'a', true);
	assert_holds(&s, 2, true);
	distill_state_close(&s);
}

/* A checkpoint that was left may have become the coordinator's file, by a hard link: the next one is another file. */
static void test_packed_again(void **state)
{
	char before[DIGEST_HEX], after[DIGEST_HEX], path[] = "packed-again", other[] = "packed-again.stored";
	struct err err = ERR_INIT;
	struct distill_state s;

	(void)state;
	unlink(other);
	assert_int_equal(dir_remove("again", &err), 0);
	s = must_open("again", 'a', false);
	assert_int_equal(train_to(&s, 2, true, &err), 0);
	assert_int_equal(distill_state_pack(&s, path, &err), 0);
	assert_int_equal(link(path, other), 0);
	assert_int_equal(digest_file(path, before, NULL, &err), 0);
	assert_int_equal(train_to(&s, 3, true, &err), 0);
	assert_int_equal(distill_state_pack(&s, path, &err), 0);
	assert_int_equal(digest_file(other, after, NULL, &err), 0);
	assert_string_equal(after, before);
	assert_int_equal(digest_file(path, after, NULL, &err), 0);
	assert_string_not_equal(after, before);
	distill_state_close(&s);
}

static void test_not_committed(void **state)
{
	struct distill_state s;
	struct err err = ERR_INIT;

	(void)state;
	assert_int_equal(dir_remove("early", &err), 0);
	s = must_open("early", 'a', false);
	assert_int_equal(distill_state_pack(&s, "packed-early", &err), -1);
	assert_int_equal(err.code, ERR_INTERNAL);
	assert_false(file_exists("packed-early"));
	distill_state_close(&s);
}

/* --- faults ------------------------------------------------------------------------------------------------------ */

/* What a worker does between two commits, with a pack at the end; then what it had at first. */
static int go_on(struct err *err)
{
	struct distill_owner owner = owner_of('a');
	struct distill_state s;
	bool found;
	int rc;

	if (distill_state_open(&s, "faulty", &owner, &found, err) != 0)
		return -1;
	rc = train_to(&s, 5, true, err);
	if (rc == 0)
		rc = distill_state_pack(&s, "packed-faulty", err);
	distill_state_close(&s);
	return rc;
}

static int take_over(struct err *err)
{
	struct distill_owner owner = owner_of('a');
	struct distill_state s;
	bool found, taken;
	int rc;

	if (distill_state_open(&s, "faulty", &owner, &found, err) != 0)
		return -1;
	rc = distill_state_unpack(&s, "packed-whole", &taken, err);
	distill_state_close(&s);
	return rc;
}

static void arm_memory(uint64_t nth) { mem_fail_after(nth); }
static void arm_open(uint64_t nth) { file_fail_after(FILE_OPEN, nth); }
static void arm_read(uint64_t nth) { file_fail_after(FILE_READ, nth); }
static void arm_write(uint64_t nth) { file_fail_after(FILE_WRITE, nth); }
static void arm_fsync(uint64_t nth) { file_fail_after(FILE_FSYNC, nth); }
static void arm_rename(uint64_t nth) { file_fail_after(FILE_RENAME, nth); }

/* Afterwards the folder holds version 2 or 5, or nothing when the fault made it look damaged. */
static void assert_one_of_two(void)
{
	struct distill_owner owner = owner_of('a');
	struct err err = ERR_INIT;
	struct distill_state s;
	bool found;

	assert_int_equal(distill_state_open(&s, "faulty", &owner, &found, &err), 0);
	if (found) {
		assert_true(s.progress.step == 2 || s.progress.step == 5);
		assert_holds(&s, (int)s.progress.step, true);
	}
	distill_state_close(&s);
}

static void each_fault(int (*work)(struct err *err))
{
	static void (*const arms[])(uint64_t nth) = { arm_memory, arm_open, arm_read, arm_write, arm_fsync, arm_rename };

	for (size_t a = 0; a < sizeof(arms) / sizeof(arms[0]); a++) {
		int in_a_row = 0;

		/* some faults are survived (a state that cannot be read is forgotten): go on until many are */
		for (uint64_t nth = 1; in_a_row < 16; nth++) {
			struct err err = ERR_INIT;

			make("faulty", 2, true);
			arms[a](nth);
			in_a_row = work(&err) == 0 ? in_a_row + 1 : 0;
			arms[a](0);
			if (in_a_row == 0)
				assert_true(err.code == ERR_NOMEM || err.code == ERR_IO || err.code == ERR_NOSPC);
			assert_one_of_two();
		}
	}
}

static void test_faults(void **state)
{
	(void)state;
	each_fault(go_on);
}

static void test_faults_while_unpacking(void **state)
{
	(void)state;
	make("whole", 5, true);
	pack("whole", "packed-whole");
	each_fault(take_over);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_found_again),
		cmocka_unit_test(test_what_follows_does_no_harm),
		cmocka_unit_test(test_parts_of_a_layer),
		cmocka_unit_test(test_damaged_files),
		cmocka_unit_test(test_another_owner),
		cmocka_unit_test(test_edited_manifest),
		cmocka_unit_test(test_manifest_of_noise),
		cmocka_unit_test(test_every_byte_of_the_manifest),
		cmocka_unit_test(test_packed_and_unpacked),
		cmocka_unit_test(test_only_what_is_further),
		cmocka_unit_test(test_packed_by_somebody_else),
		cmocka_unit_test(test_damaged_pack),
		cmocka_unit_test(test_packed_again),
		cmocka_unit_test(test_not_committed),
		cmocka_unit_test(test_faults),
		cmocka_unit_test(test_faults_while_unpacking),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
