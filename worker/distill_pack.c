/* A training state as one file, for the way to another worker. */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "common/alloc.h"
#include "common/buf.h"
#include "common/file.h"
#include "common/log.h"
#include "common/safetensors.h"
#include "worker/distill_state_parts.h"

enum { NAME_BYTES = 32, HEAD_MAX = 64 << 20 };

static const char manifest_key[] = "manifest";

/* --- packing -------------------------------------------------------------------------------------- */

struct packing {
	struct distill_state *s;
	struct st_tensor *tensors;
	char (*names)[NAME_BYTES];
	size_t count;
};

static struct st_tensor *add_tensor(struct packing *p, const char *folder, size_t layer, enum st_dtype dtype,
				    uint64_t elements)
{
	struct st_tensor *t = &p->tensors[p->count];

	snprintf(p->names[p->count], NAME_BYTES, "%s.%zu", folder, layer);
	*t = (struct st_tensor){ .name = p->names[p->count++], .dtype = dtype, .ndim = 1, .shape = { elements } };
	return t;
}

static int list_tensors(struct packing *p, struct err *err)
{
	struct distill_state *s = p->s;

	for (size_t l = 0; l < s->owner.layers; l++) {
		struct st_tensor *best;
		uint64_t bytes;
		char *path;
		int rc;

		add_tensor(p, "state", l, ST_F32, s->owner.floats[l]);
		if (s->progress.best_probe == 0)
			continue;
		best = add_tensor(p, "best", l, ST_U8, 0);
		path = distill_layer_path(s, "best", s->best, l, err);
		rc = path ? file_size(path, &bytes, err) : -1;
		mem_free(path);
		if (rc != 0)
			return -1;
		best->shape[0] = bytes;
	}
	return 0;
}

/* "state.12": the folder and the layer. */
static void split_name(const char *name, char folder[NAME_BYTES], size_t *layer)
{
	const char *dot = strchr(name, '.');

	snprintf(folder, NAME_BYTES, "%.*s", (int)(dot - name), name);
	sscanf(dot + 1, "%zu", layer);
}

static int copy_in(struct packing *p, const struct st_tensor *t, int to, uint64_t data_start, const char *to_path,
		   struct err *err)
{
	const struct distill_state *s = p->s;
	char folder[NAME_BYTES], hex[DIGEST_HEX], *path;
	size_t layer = 0;
	int fd, rc = -1;
	bool state;

	split_name(t->name, folder, &layer);
	state = strcmp(folder, "state") == 0;
	path = distill_layer_path(s, folder, state ? s->current : s->best, layer, err);
	fd = path ? file_open(path, O_RDONLY, 0, err) : -1;
	if (fd >= 0) {
		rc = distill_copy(fd, 0, path, to, data_start + t->begin, to_path, t->end - t->begin, hex, err);
		close(fd);
	}
	if (rc == 0 && strcmp(hex, (state ? s->files : s->best_files)[layer].hex) != 0)
		rc = err_set(err, ERR_IO, "%s changed on disk", path);
	mem_free(path);
	return rc;
}

static int write_packed(struct packing *p, const char *manifest, const char *path, struct err *err)
{
	const char *key = manifest_key;
	struct buf head;
	int fd = -1, rc = -1;

	buf_init(&head, HEAD_MAX);
	unlink(path); /* one that is there may be the coordinator's as well by now: never written into */
	if (st_layout(p->tensors, p->count, &key, &manifest, 1, &head, err) == 0)
		fd = file_open(path, O_WRONLY | O_CREAT | O_EXCL, 0644, err);
	if (fd >= 0)
		rc = file_pwrite(fd, head.data, head.len, 0, path, err);
	for (size_t i = 0; rc == 0 && i < p->count; i++)
		rc = copy_in(p, &p->tensors[i], fd, head.len, path, err);
	if (fd >= 0)
		close(fd);
	buf_deinit(&head);
	return rc;
}

int distill_state_pack(struct distill_state *s, const char *path, struct err *err)
{
	struct packing p = { .s = s };
	char *manifest = NULL;
	int rc = -1;

	if (!s->committed)
		return err_set(err, ERR_INTERNAL, "a training state that was not committed cannot be packed");
	p.tensors = mem_alloc(2 * s->owner.layers, sizeof(*p.tensors));
	p.names = mem_alloc(2 * s->owner.layers, sizeof(*p.names));
	if (!p.tensors || !p.names)
		err_set_nomem(err, "a checkpoint");
	else if (list_tensors(&p, err) == 0 && (manifest = distill_manifest_print(s, err)))
		rc = write_packed(&p, manifest, path, err);
	if (rc != 0)
		unlink(path);
	mem_free(manifest);
	mem_free(p.tensors);
	mem_free(p.names);
	return rc;
}

/* --- unpacking ---------------------------------------------------------------------------------------- */

struct unpacking {
	struct distill_state *s;        /* as it will be when all goes well */
	const char *path;
	int fd;
	struct st_header header;
};

static int copy_out(struct unpacking *u, const char *folder, int generation, size_t layer, enum st_dtype dtype,
		    uint64_t bytes, const char *hex, struct err *err)
{
	char name[NAME_BYTES], found[DIGEST_HEX], *path;
	const struct st_tensor *t;
	int to, rc = -1;

	snprintf(name, sizeof(name), "%s.%zu", folder, layer);
	t = st_find(&u->header, name);
	if (!t || t->dtype != dtype || (bytes != 0 && t->end - t->begin != bytes))
		return err_set(err, ERR_CORRUPT, "%s holds no tensor %s of this model", u->path, name);
	path = distill_layer_path(u->s, folder, generation, layer, err);
	to = path ? file_open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644, err) : -1;
	if (to >= 0) {
		rc = distill_copy(u->fd, u->header.data_start + t->begin, u->path, to, 0, path, t->end - t->begin,
				  found, err);
		close(to);
	}
	mem_free(path);
	if (rc == 0 && strcmp(found, hex) != 0)
		rc = err_set(err, ERR_CORRUPT, "%s: tensor %s does not have the digest its manifest gives", u->path,
			     name);
	return rc;
}

static int copy_all_out(struct unpacking *u, struct err *err)
{
	struct distill_state *s = u->s;

	if (distill_make_folder(s, "best", s->best, err) != 0)
		return -1;
	for (size_t l = 0; l < s->owner.layers; l++) {
		if (copy_out(u, "state", s->current, l, ST_F32, s->owner.floats[l] * sizeof(float), s->files[l].hex,
			     err) != 0)
			return -1;
		if (s->progress.best_probe > 0 &&
		    copy_out(u, "best", s->best, l, ST_U8, 0, s->best_files[l].hex, err) != 0)
			return -1;
	}
	return 0;
}

/* Into the generations that `old` does not use. */
static int unpack(struct unpacking *u, const struct distill_state *old, bool *newer, struct err *err)
{
	struct distill_state *s = u->s;
	const char *manifest = st_meta(&u->header, manifest_key);

	if (!manifest || distill_manifest_parse(s, manifest, strlen(manifest), true, err) != 0)
		return manifest ? -1 : err_set(err, ERR_CORRUPT, "%s has no manifest", u->path);
	*newer = !old->committed || s->progress.step > old->progress.step;
	if (!*newer)
		return 0;
	s->current = s->target = 1 - old->current;
	s->best = 1 - old->best;
	return copy_all_out(u, err);
}

/* The new state in place of the old one. */
static void replace(struct distill_state *old, struct distill_state *new)
{
	struct distill_state gone = *old;

	*old = *new;
	*new = gone;
}

/* Says nothing about the file: the caller should hear of it. */
static bool is_local(const struct err *why)
{
	return why->code == ERR_NOMEM || why->code == ERR_NOSPC;
}

int distill_state_unpack(struct distill_state *s, const char *path, bool *taken, struct err *err)
{
	struct distill_state fresh = { .dir = s->dir, .owner = s->owner };
	struct unpacking u = { .s = &fresh, .path = path, .fd = -1 };
	struct err why = ERR_INIT;
	int rc = -1;

	*taken = false;
	fresh.files = mem_alloc(s->owner.layers, sizeof(*fresh.files));
	fresh.best_files = mem_alloc(s->owner.layers, sizeof(*fresh.best_files));
	if (!fresh.files || !fresh.best_files)
		err_set_nomem(&why, "a training state");
	else if ((u.fd = file_open(path, O_RDONLY, 0, &why)) >= 0 && st_header_read_path(&u.header, path, &why) == 0)
		rc = unpack(&u, s, taken, &why);
	if (rc == 0 && *taken && (rc = distill_state_commit(&fresh, &why)) == 0)
		replace(s, &fresh);
	if (rc != 0)
		*taken = false;
	if (u.fd >= 0)
		close(u.fd);
	st_header_deinit(&u.header);
	distill_state_close(&fresh);
	if (rc == 0 || !is_local(&why)) {
		if (rc != 0)
			log_warn("checkpoint %s is not used: %s", path, why.text);
		return 0;
	}
	*err = why;
	return -1;
}
