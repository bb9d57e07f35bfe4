/* gguf_choose.c - the smallest block type for a module's settings.
 *
 * What a type holds follows from its row: its way (gguf_blocks.h), its largest code, and the range of n (q - z) or
 * of n z. With integer zero-points, z is 0 .. 2^b - 1, or 2^(b-1) when symmetric. An integer z times s needs
 * more than the 11 bits of a half, so "offset" types are for float zero-points alone.
 */
#include <stdio.h>

#include "common/buf.h"
#include "common/utf8.h"
#include "formats/gguf_blocks.h"
#include "formats/rules.h"

struct holder {
	enum gguf_type type;
	enum gguf_way way;
	int most;               /* largest code; of a super type the largest n z is in `high` */
	int low, high;          /* n (q - z) of a signed type */
};

/* By bits per weight; of equal ones the faster first. */
static const struct holder holders[] = {
	{ GGUF_Q2_K, GGUF_WAY_SUPER, 3, 0, 15 },
	{ GGUF_Q3_K, GGUF_WAY_SIGNED, 0, -4, 3 },
	{ GGUF_Q4_K, GGUF_WAY_SUPER, 15, 0, 63 },
	{ GGUF_Q4_0, GGUF_WAY_SIGNED, 0, -8, 7 },
	{ GGUF_Q4_1, GGUF_WAY_OFFSET, 15, 0, 0 },
	{ GGUF_Q5_K, GGUF_WAY_SUPER, 31, 0, 63 },
	{ GGUF_Q5_0, GGUF_WAY_SIGNED, 0, -16, 15 },
	{ GGUF_Q5_1, GGUF_WAY_OFFSET, 31, 0, 0 },
	{ GGUF_Q6_K, GGUF_WAY_SIGNED, 0, -32, 31 },
	{ GGUF_Q8_0, GGUF_WAY_SIGNED, 0, -128, 127 },
};
enum { HOLDERS = sizeof(holders) / sizeof(holders[0]) };

static bool groups_fit(const struct codec_module *m, size_t block)
{
	const size_t group = codec_group(m);

	return group > 0 && m->cols % group == 0 && group % block == 0;
}

static bool signed_fits(const struct codec_module *m, const struct holder *h, int parts)
{
	const int top = (1 << m->settings.bits) - 1, middle = (top + 1) / 2;

	if (m->settings.symmetric)
		return -middle >= h->low && top - middle <= h->high;
	return -parts * top >= h->low && parts * top <= h->high;
}

static bool values_fit(const struct codec_module *m, const struct holder *h, int parts)
{
	const int top = (1 << m->settings.bits) - 1;

	switch (h->way) {
	case GGUF_WAY_OFFSET:
		return parts == 0 && top <= h->most;
	case GGUF_WAY_SUPER:
		return top <= h->most && parts * top <= h->high;
	case GGUF_WAY_SIGNED:
		return parts > 0 && signed_fits(m, h, parts);
	}
	return false;
}

static bool parts_sane(unsigned parts)
{
	return (parts & (parts - 1)) == 0 && parts <= 128; /* 0 too */
}

static bool holder_fits(const struct codec_module *m, const struct holder *h, unsigned parts)
{
	return m->settings.bits >= 1 && m->settings.bits <= 8 && parts_sane(parts) &&
	       groups_fit(m, gguf_block_elements(h->type)) && values_fit(m, h, (int)parts);
}

static const struct holder *first_fit(const struct codec_module *m, unsigned parts)
{
	for (size_t i = 0; i < HOLDERS; i++)
		if (holder_fits(m, &holders[i], parts))
			return &holders[i];
	return NULL;
}

enum gguf_way gguf_way_of(enum gguf_type type)
{
	size_t i = 0;

	while (i + 1 < HOLDERS && holders[i].type != type)
		i++;
	return holders[i].way;
}

bool gguf_holds(const struct codec_module *m, enum gguf_type type)
{
	for (size_t i = 0; i < HOLDERS; i++)
		if (holders[i].type == type)
			return holder_fits(m, &holders[i], codec_zero_parts(m));
	return false;
}

unsigned gguf_zero_parts(const struct codec_module *m)
{
	if (first_fit(m, 0))
		return 0;
	return first_fit(m, 1) ? 1 : 0;
}

/* --- refusing ------------------------------------------------------------------------------------ */

static void refuse_group(const struct codec_module *m, struct buf *out)
{
	if (m->cols % 32 != 0)
		buf_printf(out, "needs a multiple of 32 input channels, not %llu; leave the module out with an override "
			   "\"skip\"", (unsigned long long)m->cols);
	else if (m->settings.group_size != -1 && (codec_group(m) == 0 || m->cols % codec_group(m) != 0))
		buf_printf(out, "needs groups that divide the %llu input channels; groups of %lld do not",
			   (unsigned long long)m->cols, (long long)m->settings.group_size);
	else
		buf_printf(out, "holds groups of a multiple of 32 columns or one per output channel, not %lld",
			   (long long)m->settings.group_size);
}

static void refuse_values(const struct codec_module *m, struct buf *out)
{
	const unsigned parts = codec_zero_parts(m);

	if (m->settings.bits < 1 || m->settings.bits > 8)
		buf_printf(out, "holds 1 to 8 bits, not %d", m->settings.bits);
	else if (m->settings.bits == 8)
		buf_puts(out, "holds 8 bits only with \"symmetric\": true");
	else if (m->settings.bits > 5)
		buf_printf(out, "holds %d bits only with \"zero_point\": \"integer\" or \"symmetric\": true", m->settings.bits);
	else
		buf_printf(out, "holds %d bits with any zero-points or with integer ones, not with multiples of 1/%u",
			   m->settings.bits, parts);
}

static void refuse(const struct codec_module *m, struct problems *problems)
{
	char shown[UTF8_SHOWN_MAX];
	struct buf why, fit;

	buf_init(&why, 1024);
	buf_init(&fit, 1024);
	if (!groups_fit(m, 32))
		refuse_group(m, &why);
	else
		refuse_values(m, &why);
	rule_what_fits(m, &fit);
	problems_add(problems, "%s: gguf %s; %s", utf8_show(shown, m->name), buf_text(&why), buf_text(&fit));
	buf_deinit(&why);
	buf_deinit(&fit);
}

int gguf_choose(const struct codec_module *m, enum gguf_type *type, struct problems *problems)
{
	const struct holder *h = first_fit(m, codec_zero_parts(m));

	if (h) {
		*type = h->type;
		return 0;
	}
	if (problems)
		refuse(m, problems);
	return -1;
}
