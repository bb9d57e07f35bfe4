/* distill_state_parts.h - what distill_state.c, distill_manifest.c and distill_pack.c share; nobody else includes it. */
#ifndef QUARRY_WORKER_DISTILL_STATE_PARTS_H
#define QUARRY_WORKER_DISTILL_STATE_PARTS_H

#include "worker/distill_state.h"

enum { DISTILL_MANIFEST_MAX = 16 << 20 };

/* dir/<folder>-<generation>/layer-<l>; NULL when out of memory. */
char *distill_layer_path(const struct distill_state *s, const char *folder, int generation, size_t layer,
			 struct err *err);
int distill_make_folder(const struct distill_state *s, const char *folder, int generation, struct err *err);
char *distill_manifest_path(const struct distill_state *s, struct err *err);

/* The manifest as text, to free with mem_free(). */
char *distill_manifest_print(const struct distill_state *s, struct err *err);
/* Reads into s what the text says; -1 when it is not this owner's (`any_host`: another host's counts too). Files are
 * not looked at; on failure s may be half filled. */
int distill_manifest_parse(struct distill_state *s, const char *text, size_t len, bool any_host, struct err *err);

/* Copies len bytes and digests them; either descriptor's offset is explicit. */
int distill_copy(int from, uint64_t from_offset, const char *from_path, int to, uint64_t to_offset, const char *to_path,
		 uint64_t len, char hex[DIGEST_HEX], struct err *err);

#endif
