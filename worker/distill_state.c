#include "worker/distill_state.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/file.h"
#include "common/log.h"
#include "worker/distill_state_parts.h"

enum { COPY_BYTES = 1 << 20 };

/* --- paths ------------------------------------------------------------------------------------------- */

static char *folder_path(const struct distill_state *s, const char *folder, int generation, struct err *err)
{
	char name[32], *path;

	snprintf(name, sizeof(name), "%s-%d", folder, generation);
	path = path_join(s->dir, name);
	if (!path)
		err_set_nomem(err, "a path");
	return path;
}

char *distill_layer_path(const struct distill_state *s, const char *folder, int generation, size_t layer,
			 struct err *err)
{
	char name[64], *path;

	snprintf(name, sizeof(name), "%s-%d/layer-%zu", folder, generation, layer);
	path = path_join(s->dir, name);
	if (!path)
		err_set_nomem(err, "a path");
	return path;
}

int distill_make_folder(const struct distill_state *s, const char *folder, int generation, struct err *err)
{
	char *path = folder_path(s, folder, generation, err);
	int rc = path ? dir_make(path, err) : -1;

	mem_free(path);
	return rc;
}

char *distill_manifest_path(const struct distill_state *s, struct err *err)
{
	char *path = path_join(s->dir, "manifest.json");

	if (!path)
		err_set_nomem(err, "a path");
	return path;
}

/* --- copying ------------------------------------------------------------------------------------------- */

int distill_copy(int from, uint64_t from_offset, const char *from_path, int to, uint64_t to_offset, const char *to_path,
		 uint64_t len, char hex[DIGEST_HEX], struct err *err)
{
	struct digest *digest = digest_new();
	char *bytes = mem_alloc(COPY_BYTES, 1);
	int rc = digest && bytes ? 0 : err_set_nomem(err, "a copy");

	for (uint64_t done = 0; rc == 0 && done < len;) {
		const size_t now = len - done < COPY_BYTES ? (size_t)(len - done) : COPY_BYTES;

		rc = file_pread(from, bytes, now, from_offset + done, from_path, err);
		if (rc == 0)
			rc = file_pwrite(to, bytes, now, to_offset + done, to_path, err);
		digest_add(digest, bytes, now);
		done += now;
	}
	if (rc == 0)
		digest_finish(digest, hex);
	digest_free(digest);
	mem_free(bytes);
	return rc;
}

/* --- what was committed ----------------------------------------------------------------------------------- */

/* A file that the manifest names: there, of `bytes` bytes unless 0, with that digest. */
static int check_file(const struct distill_state *s, const char *folder, int generation, size_t layer, uint64_t bytes,
		      const char *hex, struct err *err)
{
	char *path = distill_layer_path(s, folder, generation, layer, err), found[DIGEST_HEX];
	uint64_t size;
	int rc = -1;

	if (path && digest_file(path, found, &size, err) == 0) {
		rc = 0;
		if ((bytes != 0 && size != bytes) || strcmp(found, hex) != 0)
			rc = err_set(err, ERR_CORRUPT, "%s changed on disk", path);
	}
	mem_free(path);
	return rc;
}

static int check_files(const struct distill_state *s, struct err *err)
{
	for (size_t l = 0; l < s->owner.layers; l++)
		if (check_file(s, "state", s->current, l, s->owner.floats[l] * sizeof(float), s->files[l].hex,
			       err) != 0)
			return -1;
	for (size_t l = 0; s->progress.best_probe > 0 && l < s->owner.layers; l++)
		if (check_file(s, "best", s->best, l, 0, s->best_files[l].hex, err) != 0)
			return -1;
	return 0;
}

static int read_manifest(struct distill_state *s, const char *path, struct err *err)
{
	size_t len;
	char *text = file_read_all(path, DISTILL_MANIFEST_MAX, &len, err);
	int rc = text ? distill_manifest_parse(s, text, len, false, err) : -1;

	mem_free(text);
	return rc == 0 ? check_files(s, err) : -1;
}

/* Back to "nothing yet"; what lies in the folder will be written over. */
static void forget(struct distill_state *s)
{
	s->progress = (struct distill_course){ 0 };
	s->current = s->target = s->best = 0;
	s->committed = false;
}

static int load(struct distill_state *s, bool *found, struct err *err)
{
	char *path = distill_manifest_path(s, err);
	struct err why = ERR_INIT;
	int rc = path ? 0 : -1;

	if (rc == 0 && file_exists(path)) {
		if (read_manifest(s, path, &why) == 0) {
			s->committed = *found = true;
		} else if (why.code == ERR_NOMEM) { /* says nothing about the files */
			*err = why;
			rc = -1;
		} else {
			log_warn("%s: %s; training starts over", s->dir, why.text);
			forget(s);
		}
	}
	mem_free(path);
	return rc;
}

int distill_state_open(struct distill_state *s, const char *dir, const struct distill_owner *owner, bool *found,
		       struct err *err)
{
	*s = (struct distill_state){ .dir = dir, .owner = *owner };
	*found = false;
	s->files = mem_alloc(owner->layers, sizeof(*s->files));
	s->best_files = mem_alloc(owner->layers, sizeof(*s->best_files));
	if (!s->files || !s->best_files)
		err_set_nomem(err, "a training state");
	else if (dir_make(dir, err) == 0 && distill_make_folder(s, "state", 0, err) == 0 &&
		 distill_make_folder(s, "state", 1, err) == 0 && load(s, found, err) == 0)
		return 0;
	distill_state_close(s);
	return -1;
}

void distill_state_close(struct distill_state *s)
{
	mem_free(s->files);
	mem_free(s->best_files);
	*s = (struct distill_state){ 0 };
}

/* --- reading and writing ------------------------------------------------------------------------------------ */

void distill_state_begin(struct distill_state *s, bool commit_follows)
{
	s->target = s->committed ? 1 - s->current : s->current;
	s->digesting = commit_follows;
}

void distill_state_end(struct distill_state *s)
{
	s->current = s->target;
	s->committed = false;
}

int distill_state_read(struct distill_state *s, size_t layer, float *floats, size_t skip_begin, size_t skip_end,
		       struct err *err)
{
	const size_t count = s->owner.floats[layer];
	char *path = distill_layer_path(s, "state", s->current, layer, err);
	int fd = path ? file_open(path, O_RDONLY, 0, err) : -1, rc = fd < 0 ? -1 : 0;

	if (rc == 0)
		rc = file_pread(fd, floats, skip_begin * sizeof(float), 0, path, err);
	if (rc == 0)
		rc = file_pread(fd, floats + skip_end, (count - skip_end) * sizeof(float), skip_end * sizeof(float),
				path, err);
	if (fd >= 0)
		close(fd);
	mem_free(path);
	return rc;
}

static int digest_floats(const float *floats, size_t count, char hex[DIGEST_HEX], struct err *err)
{
	return digest_of(floats, count * sizeof(*floats), hex) == 0 ? 0 : err_set_nomem(err, "a digest");
}

int distill_state_write(struct distill_state *s, size_t layer, const float *floats, struct err *err)
{
	const size_t count = s->owner.floats[layer];
	char *path = distill_layer_path(s, "state", s->target, layer, err);
	int fd = path ? file_open(path, O_WRONLY | O_CREAT, 0644, err) : -1, rc = fd < 0 ? -1 : 0;

	if (rc == 0)
		rc = file_pwrite(fd, floats, count * sizeof(float), 0, path, err);
	if (rc == 0 && ftruncate(fd, (off_t)(count * sizeof(float))) != 0) /* a stranger's file may be longer */
		rc = err_set(err, ERR_IO, "cannot set the size of %s", path);
	if (rc == 0 && s->digesting)
		rc = digest_floats(floats, count, s->files[layer].hex, err);
	if (fd >= 0)
		close(fd);
	mem_free(path);
	return rc;
}

/* --- the best ---------------------------------------------------------------------------------------------------- */

/* The folder that the manifest does not name. */
static int next_best(const struct distill_state *s)
{
	return 1 - s->best;
}

char *distill_state_best_path(struct distill_state *s, size_t layer, struct err *err)
{
	if (distill_make_folder(s, "best", next_best(s), err) != 0)
		return NULL;
	return distill_layer_path(s, "best", next_best(s), layer, err);
}

int distill_state_take_best(struct distill_state *s, struct err *err)
{
	for (size_t l = 0; l < s->owner.layers; l++) {
		char *path = distill_layer_path(s, "best", next_best(s), l, err);
		int rc = path ? digest_file(path, s->best_files[l].hex, NULL, err) : -1;

		mem_free(path);
		if (rc != 0)
			return -1;
	}
	s->best = next_best(s);
	return 0;
}

int distill_file_copy(const char *from, const char *to, const char *sha256, struct err *err)
{
	char hex[DIGEST_HEX];
	uint64_t bytes = 0;
	int in = file_open(from, O_RDONLY, 0, err), out = -1, rc = -1;

	if (in >= 0 && file_size(from, &bytes, err) == 0)
		out = file_open(to, O_WRONLY | O_CREAT | O_TRUNC, 0644, err);
	if (out >= 0)
		rc = distill_copy(in, 0, from, out, 0, to, bytes, hex, err);
	if (rc == 0 && sha256 && strcmp(hex, sha256) != 0)
		rc = err_set(err, ERR_IO, "%s changed on disk", from);
	if (in >= 0)
		close(in);
	if (out >= 0)
		close(out);
	return rc;
}

int distill_state_copy_best(struct distill_state *s, size_t layer, const char *path, struct err *err)
{
	char *from = distill_layer_path(s, "best", s->best, layer, err);
	int rc = from ? distill_file_copy(from, path, s->best_files[layer].hex, err) : -1;

	mem_free(from);
	return rc;
}

/* --- committing ------------------------------------------------------------------------------------------------------ */

int distill_state_commit(struct distill_state *s, struct err *err)
{
	char *path = distill_manifest_path(s, err);
	char *text = path ? distill_manifest_print(s, err) : NULL;
	int rc = text ? file_write_atomic(path, text, strlen(text), err) : -1;

	if (rc == 0)
		s->committed = true;
	mem_free(text);
	mem_free(path);
	return rc;
}
