/* Properties of code points: utf8proc, plus what came after the version it knows. */
#include "worker/model/tokenizer_unicode.h"

#include <string.h>
#include <utf8proc.h>

const struct uni_range uni_space[] = {
	{ 0x9, 0xD, "" }, { 0x20, 0x20, "" }, { 0x85, 0x85, "" }, { 0xA0, 0xA0, "" },
	{ 0x1680, 0x1680, "" }, { 0x2000, 0x200A, "" }, { 0x2028, 0x2029, "" },
	{ 0x202F, 0x202F, "" }, { 0x205F, 0x205F, "" }, { 0x3000, 0x3000, "" },
};
const size_t uni_space_count = sizeof(uni_space) / sizeof(uni_space[0]);

const struct uni_range uni_word_symbol[] = {
	{ 0x200C, 0x200D, "" }, { 0x24B6, 0x24E9, "" }, { 0x1F130, 0x1F149, "" },
	{ 0x1F150, 0x1F169, "" }, { 0x1F170, 0x1F189, "" },
};
const size_t uni_word_symbol_count = sizeof(uni_word_symbol) / sizeof(uni_word_symbol[0]);

/* Numbers of Unicode 17, known to the part of the reference that asks uni_is_numeric() only. */
static const struct uni_range numeric_latest[] = {
	{ 0x11DE0, 0x11DE9, "" }, { 0x16FF4, 0x16FF6, "" },
};

/* The range of a sorted table that holds cp, or NULL. */
static const struct uni_range *find(const struct uni_range *table, size_t count, uint32_t cp)
{
	size_t low = 0, high = count;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (cp > table[mid].last)
			low = mid + 1;
		else if (cp < table[mid].first)
			high = mid;
		else
			return &table[mid];
	}
	return NULL;
}

const char *uni_category(uint32_t cp)
{
	const char *known = utf8proc_category_string((utf8proc_int32_t)cp);
	const struct uni_range *recent;

	if (strcmp(known, "Cn") != 0)
		return known;
	recent = find(uni_recent, uni_recent_count, cp);
	return recent ? recent->category : known;
}

bool uni_is_space(uint32_t cp)
{
	return find(uni_space, uni_space_count, cp) != NULL;
}

bool uni_is_word(uint32_t cp)
{
	const char *category = uni_category(cp);

	if (category[0] == 'L' || category[0] == 'M')
		return true;
	if (category[0] == 'N')
		return category[1] != 'o';
	if (category[0] == 'P')
		return category[1] == 'c';
	return find(uni_word_symbol, uni_word_symbol_count, cp) != NULL;
}

bool uni_is_numeric(uint32_t cp)
{
	if (cp < 0x80)
		return cp >= '0' && cp <= '9';
	if (find(numeric_latest, sizeof(numeric_latest) / sizeof(numeric_latest[0]), cp))
		return true;
	return uni_category(cp)[0] == 'N';
}

uint32_t uni_decode(const char *text, size_t *len)
{
	const unsigned char *b = (const unsigned char *)text;

	if (b[0] < 0x80) {
		*len = 1;
		return b[0];
	}
	if (b[0] < 0xE0) {
		*len = 2;
		return (uint32_t)(b[0] & 0x1F) << 6 | (b[1] & 0x3F);
	}
	if (b[0] < 0xF0) {
		*len = 3;
		return (uint32_t)(b[0] & 0x0F) << 12 | (uint32_t)(b[1] & 0x3F) << 6 | (b[2] & 0x3F);
	}
	*len = 4;
	return (uint32_t)(b[0] & 0x07) << 18 | (uint32_t)(b[1] & 0x3F) << 12 |
	       (uint32_t)(b[2] & 0x3F) << 6 | (b[3] & 0x3F);
}
