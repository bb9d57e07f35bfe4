#include "cli/fleet_options.h"

#include <stdlib.h>
#include <string.h>

enum { DEVICE_MOST = 1023 };

/* has_devices: it computes on devices of its own. */
static const struct { const char *name; bool has_devices; } backends[] = {
	{ "cpu", false }, { "cuda", true }, { "ref", false },
};

static int check_backend(const char *name, bool *has_devices, struct err *err)
{
	for (size_t i = 0; i < sizeof(backends) / sizeof(backends[0]); i++)
		if (strcmp(name, backends[i].name) == 0) {
			*has_devices = backends[i].has_devices;
			return 0;
		}
	return err_set(err, ERR_INVALID, "--backend '%s' is none of cpu, cuda and ref", name);
}

static int read_devices(struct local_config *config, const char *text, struct err *err)
{
	const char *rest = text;

	for (;;) {
		char *end;
		long number = strtol(rest, &end, 10);

		if (*rest < '0' || *rest > '9' || (*end && *end != ',') || number > DEVICE_MOST ||
		    config->device_count == LOCAL_WORKERS_MAX)
			return err_set(err, ERR_INVALID, "--devices '%s': expected at most %d numbers of GPUs, such as 0,1,2,3", text,
				       LOCAL_WORKERS_MAX);
		config->devices[config->device_count++] = (int)number;
		if (!*end)
			return 0;
		rest = end + 1;
	}
}

static int check_devices(struct local_config *config, const struct args *args, struct err *err)
{
	static const char *const names[] = { "devices", "gpu-memory" };
	bool has_devices = false;

	if (check_backend(args_get(args, "backend", "cpu"), &has_devices, err) != 0)
		return -1;
	for (int i = 0; i < 2 && !has_devices; i++)
		if (args_has(args, names[i]))
			return err_set(err, ERR_INVALID, "--%s is for GPUs; give --backend cuda with it", names[i]);
	return args_has(args, "devices") ? read_devices(config, args_get(args, "devices", ""), err) : 0;
}

int fleet_options(struct local_config *config, const struct args *args, struct err *err)
{
	int64_t workers;

	*config = (struct local_config){
		.backend = args_get(args, "backend", NULL), .memory = args_get(args, "memory", NULL),
		.gpu_memory = args_get(args, "gpu-memory", NULL),
	};
	if (check_devices(config, args, err) != 0 ||
	    args_int(args, "workers", 1, LOCAL_WORKERS_MAX, config->device_count > 0 ? config->device_count : 1, &workers,
		     err) != 0)
		return -1;
	if (workers < config->device_count)
		return err_set(err, ERR_INVALID, "--workers %d leaves %d of the %d --devices without one", (int)workers,
			       config->device_count - (int)workers, config->device_count);
	config->workers = (int)workers;
	return 0;
}
