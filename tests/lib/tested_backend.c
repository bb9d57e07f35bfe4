#include "tests/lib/tested_backend.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/forward_case.h"
#include "tests/lib/sealed_backend.h"
#include "worker/backend/cpu/levels.h"

const char *tested_backend(void)
{
	const char *name = getenv("QUARRY_TEST_BACKEND");

	return name && *name ? name : "cpu";
}

const struct backend_ops *tested_find(const char *name)
{
	struct err err = ERR_INIT;
	const struct backend_ops *ops = strcmp(name, "sealed") == 0 ? &sealed_cpu_ops : backend_find(name, &err);

	if (!ops)
		fail_msg("%s", err.text);
	return ops;
}

const char *tested_name(int i)
{
	return i == 0 ? "ref" : tested_backend();
}

static bool has_levels(void)
{
	return strcmp(tested_backend(), "cpu") == 0;
}

int tested_levels(void)
{
	return has_levels() ? (int)cpu_level_best() + 1 : 1;
}

const char *tested_level_name(int level)
{
	return has_levels() ? cpu_level_name((enum cpu_level)level) : "";
}

struct backend *tested_open(int level, int threads)
{
	struct backend *be;

	setenv("QUARRY_CPU_LEVEL", tested_level_name(level), 1);
	be = case_open(tested_backend(), threads);
	unsetenv("QUARRY_CPU_LEVEL");
	return be;
}

bool tested_may_not_allocate(const struct backend *be)
{
	return be->ops->own_memory;
}
